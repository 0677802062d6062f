package inventory

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// FuzzReadFile has each finder read anything. None fails, says where a value is not, or
// shows it.
func FuzzReadFile(f *testing.F) {
	for kind, seeds := range map[string][]string{
		Env:            {"A_TOKEN=q7Jx2LmP0sVbT4yN\nexport B_KEY='x y'", "K_SECRET=\"a\\n\\\"b"},
		Shell:          {"set -gx A_TOKEN q7Jx2LmP0sVbT4yN", "export A_KEY=vouch:x"},
		Unit:           {"[Service]\nEnvironment=\"A_TOKEN=q7Jx2LmP0sVbT4yN\" B=c \\\n D_KEY=e\nLoadCredential=a:/b\nSetCredential=c:d", "Environment='"},
		Process:        {"A_TOKEN=q7Jx2LmP0sVbT4yN\x00B=c"},
		AWS:            {"[a]\naws_secret_access_key = q7Jx2LmP0sVbT4yNq7Jx2LmP0sVbT4yNq7Jx2LmP\nexpiration=2026-01-01T00:00:00Z"},
		Gcloud:         {`{"refresh_token": "q7Jx2LmP0sVbT4yN", /* c */ "a": [1, true, {"b": "\u0041"}],}`, "SQLite format 3\x00\"refresh_token\": \"q7Jx2LmP0sVbT4yN\""},
		Azure:          {`[{"client_secret": "q7Jx2LmP0sVbT4yN"}]`, `{"AccessToken": {"a": {"secret": "q7Jx2LmP0sVbT4yN", "expires_on": "1"}}}`},
		Kubeconfig:     {"users:\n- name: a\n  user: {token: q7Jx2LmP0sVbT4yN}\n- &x name: |\n    b\n- *x", "users: [[[[{{{{"},
		Docker:         {`{"auths": {"a": {"auth": "YTpxN0p4MkxtUDBzVmJUNHlO"}}, "credHelpers": {"b": "vouch"}}`},
		Netrc:          {"machine a login b password \"q7Jx2LmP0sVbT4yN\" macdef x\n\ndefault password z # c"},
		GitCredentials: {"https://a:q7Jx2LmP0sVbT4yN@b\n\thttps://:@"},
		GitRemote:      {"[remote \"a\"]\nurl = https://a:q7Jx2LmP0sVbT4yN@b/c\n[url \"https://x:y@z/\"]\nextraheader = A: B q7Jx2LmP0sVbT4yN"},
		SSHKey:         {"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAAB\n-----END OPENSSH PRIVATE KEY-----"},
		Npmrc:          {"//a/:_authToken=q7Jx2LmP0sVbT4yN\n_auth = \"x\""},
		Pypirc:         {"[a]\npassword: q7Jx2LmP0sVbT4yN"},
		Cargo:          {"[registry]\ntoken = \"q7Jx2LmP0sVbT4yN\""},
		GH:             {"a:\n  oauth_token: 'q7Jx2LmP0sVbT4yN'\n--- # b\nc: \"\\x41\""},
		MCP:            {`{"mcpServers": {"a": {"args": ["--api-key", "q7Jx2LmP0sVbT4yN", "--h=Authorization: Bearer x"], "env": {"A_KEY": "q7Jx2LmP0sVbT4yN"}}}}`},
		CI:             {"A_TOKEN: q7Jx2LmP0sVbT4yN # x\n- name: B_KEY\n  value: 'q7Jx2LmP0sVbT4yNq7'"},
		History:        {"key := \"sk_live_q7Jx2LmP0sVbT4yN\""},
		KeyFile:        {"AGE-SECRET-KEY-1QQ", "0\x82\x01\x02\x02\x01\x03" + strings.Repeat("x", 40), "PuTTY-User-Key-File-3: x\nEncryption: none\n"},
	} {
		for _, data := range seeds {
			f.Add(kind, []byte(data))
		}
	}
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		if !slices.ContainsFunc(finders, func(f finder) bool { return f.kind == kind }) {
			return
		}
		for _, path := range []string{"/a/" + kind, "/a/.boto", "/a/config.toml", "/a/credentials"} {
			found, err := ReadFile(kind, path, data)
			for _, one := range found {
				v := one.Value.Reveal()
				if one.Leased && len(v) > 0 {
					t.Error("what is leased has a value")
				}
				if one.Start < 0 || one.End < one.Start || one.End > len(data) || one.Line < 0 || one.Line > 1+bytes.Count(data, []byte("\n")) {
					t.Errorf("bytes %d to %d, line %d of a file of %d", one.Start, one.End, one.Line, len(data))
				}
				for _, shown := range []string{one.Item, one.Path, one.Replace, one.What, one.Broad, one.Hint} {
					if strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
						t.Errorf("%q is shown as it is", shown)
					}
					if len(v) >= 12 && strings.Contains(shown, string(v)) {
						t.Error("a value is shown")
					}
				}
			}
			if err != nil && len(data) > 0 && strings.Contains(err.Error(), string(data)) && len(data) >= 12 {
				t.Error("the error has the contents")
			}
		}
	})
}

func FuzzKindOf(f *testing.F) {
	for _, path := range []string{"", "/", "a", "/etc/profile.d/x", "~/.aws/config", "\xff/.env", "../.git/config"} {
		f.Add(path, []byte("-----BEGIN PRIVATE KEY-----"))
	}
	f.Fuzz(func(t *testing.T, path string, head []byte) {
		if kind, ok := KindOf(path); ok {
			if _, err := ReadFile(kind, path, nil); err != nil {
				t.Errorf("an empty file of kind %s: %v", kind, err)
			}
		}
		Sniff(head)
		MaySniff(path, int64(len(head)))
		if strings.ContainsFunc(Printable(path)+ShellQuote(path), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is shown as it is", path)
		}
	})
}
