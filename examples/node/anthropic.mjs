// Anthropic's SDK with an identity-token file. The SDK exchanges the JWT-SVID in
// the file for a token of a few minutes, and reads the file anew for the next.
//
//     vouch fetch jwt --audience https://api.anthropic.com --write /run/research/anthropic.jwt --follow &
//     export ANTHROPIC_IDENTITY_TOKEN_FILE=/run/research/anthropic.jwt
//     export ANTHROPIC_FEDERATION_RULE_ID=fdrl_… ANTHROPIC_ORGANIZATION_ID=… ANTHROPIC_SERVICE_ACCOUNT_ID=svac_…
//     node anthropic.mjs
//
// There must be no ANTHROPIC_API_KEY: the SDK would prefer it.
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic();
const message = await client.messages.create({
  model: process.env.MODEL ?? 'claude-sonnet-4-5',
  max_tokens: 100,
  messages: [{ role: 'user', content: 'Say hello.' }],
});
console.log(message.content[0].text);
