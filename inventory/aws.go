package inventory

import (
	"bytes"
	"strings"
	"time"

	"github.com/vouchd/vouchd/inventory/text"
)

// awsFinder reads profiles of AWS's tools (Configuration and credential file settings,
// AWS SDKs and Tools Reference Guide).
var awsFinder = finder{
	kind: AWS,
	is: func(p place) bool {
		return p.dir == ".aws" && (p.name == "credentials" || p.name == "config")
	},
	read: func(r *reader) error {
		expires := make(map[string]time.Time)
		entries := text.INI(r.data)
		for _, e := range entries {
			switch strings.ToLower(e.Key) {
			case "expiration", "x_security_token_expires", "aws_expiration", "aws_session_expiration":
				if at, err := time.Parse(time.RFC3339, string(e.Value)); err == nil {
					expires[e.Section] = at.UTC()
				}
			}
		}
		for _, e := range entries {
			profile := strings.TrimPrefix(e.Section, "profile ")
			switch key := strings.ToLower(e.Key); key {
			case "aws_secret_access_key":
				n := len(r.found)
				r.consider(exact, key, "profile "+profile+" "+key, e.Value, e.Start, e.End)
				if len(r.found) > n && !r.found[n].Leased {
					r.found[n].What, r.found[n].Expires = "aws-secret-key", expires[e.Section]
				}
			case "aws_session_token":
				n := len(r.found)
				r.consider(exact, key, "profile "+profile+" "+key, e.Value, e.Start, e.End)
				if len(r.found) > n && !r.found[n].Leased {
					r.found[n].What, r.found[n].Expires = "aws-session-token", expires[e.Section]
				}
			case "credential_process":
				if asksVouch(e.Value) {
					r.lease("profile "+profile, e.Start)
				}
			}
		}
		return nil
	},
	replace: func(f *Finding, path string) string {
		profile, _, _ := strings.Cut(strings.TrimPrefix(f.Item, "profile "), " ")
		return "vouch migrate aws --profile " + ShellQuote(profile) + " " + path
	},
}

// asksVouch reports whether a command is vouch, by whatever path.
func asksVouch(command []byte) bool {
	fields := bytes.Fields(command)
	if len(fields) == 0 {
		return false
	}
	program := fields[0][bytes.LastIndexByte(fields[0], '/')+1:]
	return string(program) == "vouch" || bytes.HasSuffix(program, []byte("-credential-vouch"))
}
