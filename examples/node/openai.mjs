// OpenAI's SDK with an identity-token file. The SDK exchanges the JWT-SVID in the
// file for a short-lived token, and reads the file anew for the next. Its
// provider for Kubernetes reads a JWT from any path.
//
//     vouch fetch jwt --audience https://api.openai.com/v1 --write /run/research/openai.jwt --follow &
//     export OPENAI_IDENTITY_TOKEN_FILE=/run/research/openai.jwt
//     export OPENAI_IDENTITY_PROVIDER_ID=idp_… OPENAI_SERVICE_ACCOUNT_ID=sa_…
//     node openai.mjs
import OpenAI from 'openai';
import { k8sServiceAccountTokenProvider as tokenFromFile } from 'openai/auth';

const client = new OpenAI({
  workloadIdentity: {
    identityProviderId: process.env.OPENAI_IDENTITY_PROVIDER_ID,
    serviceAccountId: process.env.OPENAI_SERVICE_ACCOUNT_ID,
    provider: tokenFromFile(process.env.OPENAI_IDENTITY_TOKEN_FILE),
  },
});
const completion = await client.chat.completions.create({
  model: process.env.MODEL ?? 'gpt-5-mini',
  messages: [{ role: 'user', content: 'Say hello.' }],
});
console.log(completion.choices[0].message.content);
