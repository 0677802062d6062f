package inventory

import (
	"slices"
	"strings"
	"testing"
)

// What a Debian system and the trees of public projects have in files of these kinds, and
// is no secret.
func TestNoSecretIsSeenWhereThereIsNone(t *testing.T) {
	t.Parallel()
	for path, data := range map[string]string{
		"/home/a/.env": `
DEBUG=true
PORT=3000
SECRET_KEY=dev
API_KEY=your-api-key
API_KEY2=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
API_SECRET=<your secret>
TOKEN=$(pass show token)
AUTH_TOKEN=${TOKEN}
OTHER_TOKEN=$TOKEN
VAULT_TOKEN=op://vault/item/field
DB_PASSWORD=postgres
DB_URL=postgres://postgres:postgres@localhost:5432/app
CACHE_URL=redis://localhost:6379
DB_SOCKET=/run/postgresql
PASSWORD=yourpassword
SECRET_NAME=projects/x/secrets/y
TOKEN_TTL=3600
KEY_FILE=/etc/app/key
AWS_ACCESS_KEY_ID=AKIA` + `QRSTUVWXYZ234567
AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
AZURE_KEY=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==
SENTRY_DSN=https://0123abcd4567ef890123abcd4567ef89@o1.ingest.sentry.io/2
STRIPE_PUBLISHABLE_KEY=pk_live_4f8Zq1LmN0pQ7rStU2vWxY3z
NEXT_PUBLIC_KEY=4f8Zq1LmN0pQ7rStU2vWxY3z
GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D
MAX_TOKENS=4096
AUTH_METHOD=oauth2
APP_KEY=
X_TOKEN=__TOKEN_VALUE__
JWT_SECRET=changeme123
COOKIE_SECRET=00000000000000000000000000000000
ENCRYPTION_KEY=0123456789abcdef0123456789abcdef
KEYBOARD_LAYOUT=us-intl-4f8Zq1LmN0
# STRIPE_KEY=sk_live_your_key_goes_here
`,
		"/srv/app/.env.example":         "REDIS_URL=redis://:myredissecret@127.0.0.1:6379/1\nDB_PASSWORD=P0stgres!\nSECRET=a-long-secret-of-words\n",
		"/etc/default/keyboard":         "XKBMODEL=\"pc105\"\nXKBLAYOUT=\"us\"\n",
		"/etc/profile.d/debuginfod":     "DEBUGINFOD_URLS=$(cat /etc/debuginfod/*.urls)\nexport DEBUGINFOD_URLS\n",
		"/root/.bashrc":                 "PS1='${debian_chroot:+($debian_chroot)}\\u@\\h:\\w\\$ '\nexport GPG_TTY=$(tty)\nPWD='/home/a/My Project'\nexport SSH_AUTH_SOCK=/run/user/0/agent\n",
		"/lib/systemd/system/a.service": "[Service]\nEnvironment=LANG=C PASSWORD_FILE=/run/secrets/x\nExecStart=/usr/bin/a --token-file /run/x\nLoadCredentialEncrypted=a:/etc/x\n",
		"/x/.github/workflows/a.yml":    "env:\n  GH_TOKEN: ${{ secrets.GITHUB_TOKEN }}\n  POSTGRES_PASSWORD: postgres\n  key: ${{ runner.os }}-go-${{ hashFiles('go.sum') }}\n  CACHE_KEY: v3-4f8Zq1LmN0pQ7rStU2vWxY3z\nsteps:\n- uses: actions/cache@0c45773b623bea8c8e75f6c82b208c3cf94ea4f9\n- run: echo \"token=$TOKEN\" >> $GITHUB_OUTPUT\n- run: curl -H \"Authorization: Bearer ${TOKEN}\" https://api.github.com\n  secrets: inherit\n  id-token: write\n",
		"/x/Jenkinsfile":                "environment { API_TOKEN = credentials('deploy-token-of-the-team') }\nwithCredentials([string(credentialsId: 'npm-token-4f8Zq1Lm', variable: 'TOKEN')])\n",
		"/x/.npmrc":                     "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\nsave-exact=true\n",
		"/x/.git/config":                "[remote \"origin\"]\n\turl = https://github.com/a/b.git\n[remote \"b\"]\n\turl = ssh://git@github.com/a/b\n[credential]\n\thelper = store\n[user]\n\tsigningkey = 4F8A1B2C3D4E5F60\n",
		"/home/a/.aws/config":           "[profile a]\nsso_start_url = https://a.awsapps.com/start\nrole_arn = arn:aws:iam::123456789012:role/a\ncredential_process = /opt/other/helper\n",
		"/home/a/.docker/config.json":   `{"auths": {"ghcr.io": {}, "docker.io": {"auth": ""}}, "credsStore": "pass", "psFormat": "table"}`,
		"/home/a/.kube/config":          "users:\n- name: a\n  user:\n    exec: {command: aws, args: [eks, get-token]}\n    client-certificate: /x\n    tokenFile: /y\n",
		"/home/a/.claude/settings.json": `{"env": {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "16000", "OTEL_EXPORTER": "otlp"}, "permissions": {"deny": ["Read(./.env)", "Read(./secrets/**)"]}, "apiKeyHelper": "/bin/helper"}`,
		"/home/a/.claude.json":          `{"claudeCodeFirstTokenDate": "2025-09-01T10:11:12.345Z", "userID": "` + strings.Repeat("4f8a1b2c", 8) + `", "mcpServers": {}}`,
		"/x/mcp.json":                   `{"inputs": [{"type": "promptString", "id": "token"}], "servers": {"a": {"command": "npx", "args": ["-y", "@a/server-token"], "env": {"TOKEN": "${input:token}"}}}}`,
		"/x/.cirrus.yml":                "env:\n  gcp_credentials: ENCRYPTED[4f8Zq1LmN0pQ7rStU2vWxY3z4f8Zq1LmN0pQ7r]\n",
		"/x/test/fixtures/key.txt":      "",
		"/x/cert.pem":                   "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIFHDBOBgkqhkiG9w0BBQ0wQTApBgkqhkiG9w0BBQwwHAQI\n-----END ENCRYPTED PRIVATE KEY-----\n-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n",
	} {
		kind, ok := KindOf(path)
		if !ok {
			if !strings.HasSuffix(path, ".txt") {
				t.Errorf("%s has no kind", path)
			}
			continue
		}
		found, err := ReadFile(kind, path, []byte(data))
		if err != nil || len(found) > 0 {
			t.Errorf("%s: found %q, %v", path, items(found), err)
		}
	}
}

func TestKeysOfTestsAreLeftAlone(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"/x/caddytest/a.key": false, "/x/testcerts/a.key": false, "/usr/local/go/src/crypto/x509/platform_root_key.pem": false, "/x/testserver/a.key": true, "/x/integration/tls/a.key": false, "/x/testdata/a.key": false, "/x/vendor/y/a.pem": false, "/etc/ssh/ssh_host_rsa_key": false,
		"/etc/ssl/private/ssl-cert-snakeoil.key": false, "/x/latest/a.key": true, "/etc/app/tls.key": true, "/x/deploy_key": true,
	} {
		if _, ok := KindOf(path); ok != want {
			t.Errorf("%s has a kind: %v, want %v", path, ok, want)
		}
	}
}

func TestKeysInTestProgramsAreNoHistory(t *testing.T) {
	t.Parallel()
	age := "AGE-SECRET-KEY-1" + strings.Repeat("Q3Z", 20)[:58]
	for path, want := range map[string]int{"x/age_test.go": 0, "x/test_age.py": 0, "x/age.test.ts": 0, "testdata/a.txt": 0, "x/age.go": 1, "notes.md": 1} {
		if found, err := ReadFile(History, path, []byte("key := \""+age+"\"\n")); err != nil || len(found) != want {
			t.Errorf("%s: found %q, %v, want %d", path, items(found), err, want)
		}
	}
}

func TestSecretIsSeenThoughItIsNoVendorsOwn(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"DB_PASSWORD": "correct-horse-battery", "ROOT_PASSWORD": "hunter2", "SMTP_PASS": "qjwzkxvb plmnthgr"[:8] + "QW", "API_KEY": random(t, 20), "SESSION_SECRET": random(t, 32),
		"PGPASSWORD": random(t, 12), "HOOK_URL": "https://discord.com/api/webhooks/846213/" + random(t, 40), "SAS_URL": "https://a.blob.core.windows.net/b?sv=1&sig=" + random(t, 44),
		"CONNECTION_STRING": "Server=db;User=a;Password=" + random(t, 16) + ";", "DATABASE_URL": "mysql://a:" + random(t, 12) + "@db/x", "app.signing-key": random(t, 32), "UNDER_TOKEN": "__" + random(t, 20),
	} {
		found := read(t, "/srv/app/.env", name+"="+value+"\n")
		if !slices.Equal(items(found), []string{name}) {
			t.Errorf("%s: found %q", name, items(found))
		}
	}
}

func TestHandlesAndOwnProgramsAreLeased(t *testing.T) {
	t.Parallel()
	for path, data := range map[string]string{
		"/a/.env":                       "A_KEY=vouch:a",
		"/a/.aws/config":                "[default]\ncredential_process = vouch aws-credential-process a",
		"/a/.kube/config":               "users:\n- name: a\n  user:\n    exec:\n      command: /usr/bin/vouch\n",
		"/a/.docker/config.json":        `{"credHelpers": {"a": "vouch"}}`,
		"/a/.gitconfig":                 "[credential]\nhelper = /usr/bin/git-credential-vouch\n",
		"/a/mcp.json":                   `{"mcpServers": {"a": {"command": "vouch", "args": ["exec"]}}}`,
		"/etc/systemd/system/a.service": "[Service]\nLoadCredential=a:/run/vouchd/credentials.sock\n",
	} {
		found := read(t, path, data)
		if len(found) != 1 || !found[0].Leased || found[0].Static() || found[0].Value.Len() > 0 {
			t.Errorf("%s: found %+v", path, found)
		}
	}
}

func TestTokenSaysWhenItExpiresAndWhatIsTooBroad(t *testing.T) {
	t.Parallel()
	jwt := "eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjIwMDAwMDAwMDAsInN1YiI6ImEifQ." + random(t, 43)
	found := read(t, "/a/.env", "A_TOKEN="+jwt+"\nB_TOKEN=ghp_"+random(t, 36)+"\nC_KEY=sk-proj-"+random(t, 48)+"\n")
	if len(found) != 3 || found[0].Expires.Unix() != 2000000000 || found[0].Static() || !found[1].Static() {
		t.Fatalf("found %+v", found)
	}
	if found[1].Broad == "" || found[2].Broad != "" || found[1].What != "github-token" {
		t.Errorf("broad: %q, %q", found[1].Broad, found[2].Broad)
	}
}

func TestAnItemThatIsTheSecretItselfIsNotShown(t *testing.T) {
	t.Parallel()
	secret := random(t, 32)
	found := read(t, "/a/mcp.json", `{"mcpServers": {"`+secret+`": {"env": {"A_KEY": "`+secret+`"}}}}`)
	if len(found) != 1 || strings.Contains(found[0].Item, secret[:6]) {
		t.Errorf("found %d", len(found))
	}
}

// A rule against examples must not take what is random for one, but once in many.
func TestRandomValuesAreHardlyEverTakenForExamples(t *testing.T) {
	t.Parallel()
	const tries = 5000
	missed := 0
	for range tries {
		if !isSecret(named, "API_TOKEN", []byte(random(t, 32))) || !isSecret(named, "", []byte("sk-proj-"+random(t, 48))) {
			missed++
		}
	}
	if missed > 2 {
		t.Errorf("%d of %d are missed", missed, tries)
	}
}
