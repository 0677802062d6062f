// An agent that calls an API with a credential from its environment, where vouch
// exec puts it for the agent's life:
//
//     API_URL=https://api.example.com vouch exec --credential openai-research=API_KEY -- node agent.mjs
//
// The variable is taken out of the environment at once, so that programs which
// the agent starts do not inherit it.
const key = process.env.API_KEY;
delete process.env.API_KEY;
if (!key) {
  console.error('agent: API_KEY is not set; run it under vouch exec');
  process.exit(1);
}

const response = await fetch(process.env.API_URL + '/v1/models', {
  headers: { Authorization: `Bearer ${key}` },
  signal: AbortSignal.timeout(30_000),
});
if (!response.ok) {
  console.error(`agent: the API answered with status ${response.status}`);
  process.exit(1);
}
console.log((await response.json()).data[0].id);
