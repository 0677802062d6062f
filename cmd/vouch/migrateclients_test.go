//go:build clients

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestAWSClientsHaveTheKeyOfAMigratedProfile(t *testing.T) {
	h := newHost(t)
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	must(t, os.Mkdir(h.Path(".aws"), 0o755))
	h.Write(".aws/credentials", fmt.Sprintf("[agent]\naws_access_key_id = AKIAIOSFODNN7ABCDEFG\naws_secret_access_key = %s\n", canaryOf(1)))
	h.Start()
	h.OK("migrate", "aws", "--profile", "agent", h.Path(".aws/credentials"))
	h.grantAll()
	var signed []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		signed = append(signed, r.Header.Get("Authorization"))
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>a</Arn><UserId>u</UserId><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	}))
	defer api.Close()
	env := append(h.helpers(), "AWS_SHARED_CREDENTIALS_FILE="+h.Path(".aws/credentials"), "AWS_CONFIG_FILE=/dev/null", "STS="+api.URL)
	ran(t, env, "/usr/bin/python3", "-c", `import botocore.session, os
botocore.session.Session(profile="agent").create_client("sts", region_name="eu-central-1", endpoint_url=os.environ["STS"]).get_caller_identity()`)
	ran(t, env, "sh", "-ec", `/usr/bin/aws --profile agent --region eu-central-1 --endpoint-url "$STS" sts get-caller-identity`)
	if len(signed) != 2 {
		t.Fatalf("%d calls were made", len(signed))
	}
	for _, s := range signed {
		if !strings.Contains(s, "Credential=AKIAIOSFODNN7ABCDEFG/") {
			t.Errorf("a call is signed as %q", s)
		}
	}
}
