#!/usr/bin/env python3
"""An agent that calls an API with a credential which vouch keeps in a file.

The file is read anew for every call, since vouch replaces it before the value
expires. Nothing is kept: what is stolen from this process is worth minutes.

    vouch get openai-research --write /run/research/credential.json --follow &
    API_URL=https://api.example.com API_CREDENTIAL_FILE=/run/research/credential.json ./agent.py
"""

import json
import os
import sys
import urllib.error
import urllib.request


def token():
    """Returns the credential's access token as it is now."""
    with open(os.environ["API_CREDENTIAL_FILE"], encoding="utf-8") as f:
        return json.load(f)["fields"]["access_token"]


def call(path):
    """Asks the API; once more if the value was replaced at that moment."""
    for last in (False, True):
        request = urllib.request.Request(
            os.environ["API_URL"] + path, headers={"Authorization": "Bearer " + token()}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as e:
            if e.code != 401 or last:
                raise


if __name__ == "__main__":
    try:
        print(call("/v1/models")["data"][0]["id"])
    except (OSError, KeyError, ValueError) as e:
        sys.exit(f"agent: {e}")
