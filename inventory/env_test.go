package inventory

import (
	"slices"
	"testing"
)

func TestEnvFileHasSecretsAndMuchElse(t *testing.T) {
	t.Parallel()
	key, quoted, url := random(t, 32), random(t, 24), "postgres://app:"+random(t, 20)+"@db.internal/app"
	found := read(t, "/srv/app/.env", `
OPENAI_MODEL=gpt-5
PORT=8080
SECRET_KEY=`+key+`
export SESSION_SECRET="`+quoted+`" # of the web
DATABASE_URL=`+url+`
CACHE_URL=redis://localhost:6379/0
API_TOKEN=vouch:app-token
API_KEY=changeme
OTHER_TOKEN=${FROM_ELSEWHERE}
TOKEN_URL=https://login.internal/oauth/token
MAX_TOKENS=4096
DB_PASSWORD=postgres
`)
	if want := []string{"SECRET_KEY", "SESSION_SECRET", "DATABASE_URL", "API_TOKEN (leased)"}; !slices.Equal(items(found), want) {
		t.Errorf("found %q, want %q", items(found), want)
	}
	if found[1].Line != 5 || string(found[1].Value.Reveal()) != quoted {
		t.Errorf("line %d, want 5, or another value", found[1].Line)
	}
}

func TestProfileOfAWSIsReadByItsKeys(t *testing.T) {
	t.Parallel()
	found := read(t, "/home/ann/.aws/credentials", "[default]\naws_access_key_id = AKIA"+"QQQQWWWWEEEERRRR\naws_secret_access_key = "+random(t, 40)+
		"\n[docs]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n[new]\ncredential_process = /usr/bin/vouch aws-credential-process x\n")
	if want := []string{"profile default aws_secret_access_key", "profile new (leased)"}; !slices.Equal(items(found), want) {
		t.Errorf("found %q, want %q", items(found), want)
	}
	if found[0].Replace != "vouch migrate aws --profile default /home/ann/.aws/credentials" {
		t.Errorf("replaced by %q", found[0].Replace)
	}
}
