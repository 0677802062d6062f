package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
)

// A Slot is a place in a request for a credential. One of Header, Basic, Query and
// SigV4 is set.
type Slot struct {
	Header string // its name, as net/textproto has it
	Form   string // of the header's value: text with {{value}}, or {{FIELD}} of a credential with several
	Basic  string // the user name, or {{FIELD}}; the value is the password (RFC 7617)
	Query  string // the key
	SigV4  *SigV4
}

// A SigV4 has requests signed as AWS does, with the fields that the federation broker
// has for AWS: access_key_id, secret_access_key and, if there is one, session_token; or
// those that Vault has. Where the access key's ID is named here, the credential's only
// value is its secret.
type SigV4 struct{ Region, Service, AccessKeyID string }

// HeaderName returns the header that the slot is in; empty for a query's key.
func (s *Slot) HeaderName() string {
	if s.Basic != "" || s.SigV4 != nil {
		return "Authorization"
	}
	return s.Header
}

// everywhere lists headers that carry credentials at one vendor or another. They are
// policed in every request, whatever the definition names.
var everywhere = []string{
	"Authorization", "Proxy-Authorization", "Cookie",
	"Api-Key", "X-Api-Key", "Apikey", "X-Apikey", "X-Api-Token", "X-Api-Secret", "X-Auth-Key", "X-Auth-Token", "X-Access-Token", "X-Auth", "X-Token",
	"X-Goog-Api-Key", "X-Goog-Iam-Authorization-Token", "X-Amz-Security-Token", "X-Amz-Access-Token", "X-Ms-Token", "X-Ms-Authorization-Auxiliary",
	"Private-Token", "Job-Token", "Deploy-Token", "X-Github-Token", "X-Gitlab-Token", "X-Vault-Token", "X-Consul-Token", "X-Nomad-Token",
	"X-Shopify-Access-Token", "X-Figma-Token", "X-Airtable-Api-Key", "X-Postmark-Server-Token", "X-Sentry-Auth", "X-Slack-Token",
	"Dd-Api-Key", "Dd-Application-Key", "Circle-Token", "X-Circleci-Token", "X-Pinecone-Api-Key", "X-Subscription-Token", "Ocp-Apim-Subscription-Key", "X-Rapidapi-Key",
}

// everywhereInQuery lists keys of a query that do.
var everywhereInQuery = []string{
	"access_token", "api_key", "apikey", "key", "auth", "auth_token", "token", "private_token", "job_token", "oauth_token", "client_secret", "sig",
	"X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token", "X-Goog-Credential", "X-Goog-Signature",
}

// CanonicalHeader returns a header's name as servers compare it: some read an
// underscore as a dash.
func CanonicalHeader(name string) string {
	return textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// Places returns the headers and the query's keys that have to be empty or hold
// the caller's handle.
func (p *Policy) Places() (headers, keys map[string]bool) { return p.headers, p.keys }

func (p *Policy) places() (headers, keys map[string]bool) {
	headers, keys = make(map[string]bool), make(map[string]bool)
	for _, h := range everywhere {
		headers[h] = true
	}
	for _, k := range everywhereInQuery {
		keys[strings.ToLower(k)] = true
	}
	for _, s := range append([]Slot{p.Slot}, p.Others...) {
		if h := s.HeaderName(); h != "" {
			headers[h] = true
		}
		if s.Query != "" {
			keys[strings.ToLower(s.Query)] = true
		}
	}
	for _, free := range p.Free {
		delete(headers, CanonicalHeader(free))
		delete(keys, strings.ToLower(free))
	}
	if p.Cookies {
		delete(headers, "Cookie")
	}
	return headers, keys
}

// signatureV4 begins what AWS's clients sign with (Signature Version 4). What they are
// given for a key is the first part of a comma's list, before the scope of the signature.
const signatureV4 = "AWS4-HMAC-SHA256"

// Held returns what a header's value holds in place of a credential: itself, what
// follows the name of a scheme, the password of basic authentication, or its
// user name where that is the credential, or the access key's ID of a signature.
func Held(value string) []string {
	value = strings.TrimSpace(value)
	if value == "" {
		return nil
	}
	scheme, rest, ok := strings.Cut(value, " ")
	if !ok {
		return []string{value}
	}
	rest = strings.TrimSpace(rest)
	if scheme == signatureV4 {
		credential, _, _ := strings.Cut(rest, ",")
		if id, _, ok := strings.Cut(strings.TrimPrefix(credential, "Credential="), "/"); ok {
			return []string{id}
		}
		return []string{rest}
	}
	if !strings.EqualFold(scheme, "basic") {
		return []string{rest}
	}
	plain, err := base64.StdEncoding.DecodeString(rest)
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok {
		return []string{rest}
	}
	switch {
	case password == "", password == "x-oauth-basic":
		return []string{user}
	case user == password:
		return []string{user}
	}
	return []string{password}
}

// Render returns what stands in the slot, given the credential's fields by name;
// "value" is its only secret one.
func (s *Slot) Render(fields map[string]string) (string, error) {
	if s.Basic != "" {
		user, err := expand(s.Basic, fields)
		if err != nil {
			return "", err
		}
		password, err := expand("{{value}}", fields)
		if err != nil {
			return "", err
		}
		if strings.Contains(user, ":") {
			return "", errors.New("the user name has a colon, which basic authentication cannot carry")
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), nil
	}
	if s.Query != "" {
		return expand("{{value}}", fields)
	}
	return expand(s.Form, fields)
}

// expand puts fields into text.
func expand(text string, fields map[string]string) (string, error) {
	var b strings.Builder
	for rest := text; ; {
		before, after, found := strings.Cut(rest, "{{")
		b.WriteString(before)
		if !found {
			break
		}
		name, after, closed := strings.Cut(after, "}}")
		value, ok := fields[strings.TrimSpace(name)]
		if !closed || !ok {
			return "", fmt.Errorf("the credential has no field %.40q", name)
		}
		b.WriteString(value)
		rest = after
	}
	if s := b.String(); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", errors.New("the value has a control character, which a request cannot carry")
	}
	return b.String(), nil
}

func (s *Slot) check() error {
	given := 0
	for _, is := range []bool{s.Header != "", s.Basic != "", s.Query != "", s.SigV4 != nil} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("slot needs one of header, basic, query and sigv4")
	case s.Header == "" && s.Form != "":
		return errors.New("slot has a form, which is for a header")
	case s.Header != "" && !strings.Contains(s.Form, "{{"):
		return errors.New(`slot has a form without {{value}}; write it like "Bearer {{value}}"`)
	case s.SigV4 != nil && (s.SigV4.Region == "" || s.SigV4.Service == ""):
		return errors.New("slot sigv4 needs a region and a service")
	case s.SigV4 != nil && strings.ContainsFunc(s.SigV4.AccessKeyID, func(c rune) bool { return c <= ' ' || c > '~' || c == '/' || c == ',' }):
		return fmt.Errorf("slot sigv4 has the access_key_id %.40q, which no request can carry", s.SigV4.AccessKeyID)
	}
	return nil
}

// checkPlace checks a slot that nothing is put into.
func (s *Slot) checkPlace() error {
	if s.Form != "" {
		return errors.New("a slot of others names a place alone; remove its form")
	}
	of := *s
	if of.Header != "" {
		of.Form = "{{value}}"
	}
	return of.check()
}
