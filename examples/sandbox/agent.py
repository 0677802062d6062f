"""An agent that does what its model says: it asks for the next command, runs it, and tells
what came of it. Its key is a handle; where it calls, it knows by name."""

import json
import os
import subprocess
import urllib.request

said = ""
while True:
    question = urllib.request.Request(
        "https://model.example/v1/next",
        json.dumps({"said": said}).encode(),
        {"Authorization": "Bearer " + os.environ["MODEL_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(question, timeout=60) as answer:
        command = json.load(answer)["run"]
    if not command:
        break
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    said = (done.stdout + done.stderr).decode(errors="replace")[-400:]
    print(f"$ {command}\n{said.strip()}", flush=True)
