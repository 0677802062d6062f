// Package foreign keeps the bundles of other trust domains: whom this host's
// workloads may be told to trust beside its own (SPIFFE Federation).
//
// Files of federation.d name each trust domain and where its bundle comes from: an
// endpoint that is polled, a file, or both. A [Keeper] has the last good bundle of
// each. It keeps it in the state directory, so a restart without the network serves
// at once, and replaces it only by one that is newer, in form, and from the endpoint
// that was named.
//
// Bundles are never merged: each stays under the name of its trust domain, and a name
// comes from the configuration alone, never from what an endpoint says. Who is given a
// bundle is not decided here: an entry says so by federates_with.
package foreign

import (
	"crypto/sha256"
	"encoding/binary"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
)

// The profiles of a bundle endpoint (Federation §5.2).
const (
	Web    = "https_web"    // its certificate is of the Web PKI
	SPIFFE = "https_spiffe" // its certificate is an X509-SVID
)

// maxDomains bounds the trust domains that one host federates with.
const maxDomains = 100

// A Domain is another trust domain, and where its bundle comes from.
type Domain struct {
	TrustDomain spiffeid.TrustDomain
	Endpoint    string      // URL; empty: the file alone
	Profile     string      // of the endpoint
	EndpointID  spiffeid.ID // whom an https_spiffe endpoint must prove to be
	File        string      // has the first bundle, or every one; may be empty
	Pos         config.Pos  // where it is written
}

// Domains are all that are configured. They do not change once loaded.
type Domains struct {
	list   []Domain
	digest [32]byte
}

// A document is one file of federation.d.
type document struct {
	Federation []written `yaml:"federation"`
}

type written struct {
	TrustDomain config.At[spiffeid.TrustDomain] `yaml:"trust_domain" required:"true" like:"partner.example"`
	Endpoint    config.At[string]               `yaml:"bundle_endpoint_url" like:"https://spiffe.partner.example/bundle"`
	Profile     config.At[string]               `yaml:"profile" oneof:"https_web https_spiffe"`
	EndpointID  config.At[spiffeid.ID]          `yaml:"endpoint_spiffe_id" like:"spiffe://partner.example/bundle"`
	File        config.At[string]               `yaml:"bundle_file" like:"/etc/vouchd/federation.d/partner.example.bundle"`

	Pos config.Pos
}

// Load reads the *.yaml files of dir. A missing directory has none. An error about them
// is of type [config.Errors]. AnyOwner accepts files that other users may write to, for
// checking a working copy.
func Load(dir string, own spiffeid.TrustDomain, anyOwner bool) (*Domains, error) {
	files, err := config.ReadDir(dir, anyOwner)
	var problems config.Errors
	problems.AddErr(dir, err)
	return parse(files, problems, own)
}

// Parse is [Load] of files that were read. Own is this host's trust domain.
func Parse(files []config.File, own spiffeid.TrustDomain) (*Domains, error) {
	return parse(files, nil, own)
}

func parse(files []config.File, problems config.Errors, own spiffeid.TrustDomain) (*Domains, error) {
	ds := new(Domains)
	h := sha256.New()
	for _, f := range files {
		var doc document
		problems.AddErr(f.Path, config.Decode(f.Path, f.Data, &doc))
		for i := range doc.Federation {
			if w := &doc.Federation[i]; w.Pos.Line > 0 {
				w.check(own, &problems)
				ds.list = append(ds.list, w.domain())
			}
		}
		for _, part := range [][]byte{[]byte(filepath.Base(f.Path)), f.Data} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
		if len(ds.list) > maxDomains {
			problems.Add(config.Pos{File: f.Path}, "with this file there are more than %d trust domains; remove some", maxDomains)
			break
		}
	}
	ds.among(own, &problems)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(ds.list) > 0 {
		ds.digest = [32]byte(h.Sum(nil))
	}
	return ds, nil
}

func (w *written) domain() Domain {
	return Domain{
		TrustDomain: w.TrustDomain.Value,
		Endpoint:    w.Endpoint.Value,
		Profile:     w.Profile.Value,
		EndpointID:  w.EndpointID.Value,
		File:        w.File.Value,
		Pos:         w.Pos,
	}
}

// check finds what is wrong with one domain. A value that is zero although it has a
// place is a problem already.
func (w *written) check(own spiffeid.TrustDomain, problems *config.Errors) {
	td, given := w.TrustDomain.Value, func(p config.Pos) bool { return p.Line > 0 }
	if td == own && !own.IsZero() {
		problems.Add(w.TrustDomain.Pos, "trust_domain %s is this host's own, whose bundle comes from its authority; remove it", td)
	}
	if p := w.File.Value; p != "" && (!filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0)) {
		problems.Add(w.File.Pos, "bundle_file %.80q is not a plain absolute path; write it from / without . and .. and without / at its end", p)
	}
	if !given(w.Endpoint.Pos) {
		switch {
		case !given(w.File.Pos):
			problems.Add(w.Pos, "trust domain %s has no source of its bundle; give bundle_endpoint_url and profile, or bundle_file", td)
		case given(w.Profile.Pos):
			problems.Add(w.Profile.Pos, "profile is that of an endpoint; give bundle_endpoint_url, or remove it")
		case given(w.EndpointID.Pos):
			problems.Add(w.EndpointID.Pos, "endpoint_spiffe_id is that of an endpoint; give bundle_endpoint_url, or remove it")
		}
		return
	}
	if u := w.Endpoint.Value; u != "" && !isEndpoint(u) {
		problems.Add(w.Endpoint.Pos, "bundle_endpoint_url %.80q is not an https URL without user, query and fragment; write it like https://spiffe.partner.example/bundle", u)
	}
	id := w.EndpointID
	switch {
	case !given(w.Profile.Pos):
		problems.Add(w.Pos, "profile is missing; write https_spiffe if the endpoint proves itself by an X509-SVID, or https_web if by a certificate of the Web PKI")
	case w.Profile.Value == Web && given(id.Pos):
		problems.Add(id.Pos, "endpoint_spiffe_id is for profile https_spiffe, and this one is https_web; remove one")
	case w.Profile.Value == SPIFFE && !given(id.Pos):
		problems.Add(w.Pos, "endpoint_spiffe_id is missing; profile https_spiffe needs to know whom the endpoint must prove to be, like spiffe://%s/bundle", td)
	case w.Profile.Value != SPIFFE || id.Value.IsZero():
	case id.Value.TrustDomain() == own:
		problems.Add(id.Pos, "endpoint_spiffe_id %s is in this host's own trust domain; an endpoint proves itself in the one it is of", id.Value)
	case id.Value.TrustDomain() == td && !given(w.File.Pos):
		problems.Add(w.Pos, "bundle_file is missing; the first bundle of %s can't come from an endpoint that is verified with it: get it another way, compare its sha256sum with the sender, and name it here", td)
	}
}

// isEndpoint holds a URL to Federation §5.2.1.1. A query is allowed there, and hides in
// messages and records, which leave it out elsewhere.
func isEndpoint(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && !strings.ContainsAny(s, "?#") && len(s) <= 1024
}

// among checks domains against each other.
func (ds *Domains) among(own spiffeid.TrustDomain, problems *config.Errors) {
	first := make(map[spiffeid.TrustDomain]Domain)
	for _, d := range ds.list {
		if f, again := first[d.TrustDomain]; again && !d.TrustDomain.IsZero() {
			problems.AddBetween(d.Pos, f.Pos, "trust domain %s is at %v too; remove one", d.TrustDomain, f.Pos)
			continue
		}
		first[d.TrustDomain] = d
	}
	for _, d := range ds.list {
		td := d.EndpointID.TrustDomain()
		if _, known := first[td]; !td.IsZero() && td != own && !known {
			problems.Add(d.Pos, "endpoint_spiffe_id %s is in trust domain %s, whose bundle verifies it and which is not configured; add it (Federation §5.2.2.2)", d.EndpointID, td)
		}
	}
}

// All returns every domain in the order of files and lines.
func (ds *Domains) All() []Domain {
	if ds == nil {
		return nil
	}
	return slices.Clone(ds.list)
}

// Has reports whether a trust domain is configured.
func (ds *Domains) Has(td spiffeid.TrustDomain) bool {
	return ds != nil && slices.ContainsFunc(ds.list, func(d Domain) bool { return d.TrustDomain == td })
}

// Digest returns a SHA-256 over the names and contents of the files, zero where they name no
// trust domain.
func (ds *Domains) Digest() [32]byte {
	if ds == nil {
		return [32]byte{}
	}
	return ds.digest
}
