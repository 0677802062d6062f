package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
)

// Grants say which credentials an identity may lease whose entry is a SPIRE server's, which
// knows nothing of them. They do not change once loaded, and are safe for concurrent use. The
// zero value grants nothing.
type Grants struct {
	of     map[spiffeid.ID][]string
	pos    map[spiffeid.ID]config.Pos
	digest [32]byte
}

// A grantsDocument is one file of grants.d.
type grantsDocument struct {
	Grants []writtenGrant `yaml:"grants"`
}

type writtenGrant struct {
	ID          config.At[spiffeid.ID] `yaml:"spiffe_id" required:"true" like:"spiffe://example.org/agent/research"`
	Credentials []config.At[string]    `yaml:"credentials" required:"true" like:"github-read"`

	Pos config.Pos
}

// LoadGrants reads the *.yaml files of dir. A missing directory has none. An error about them
// is of type [config.Errors]. AnyOwner accepts files that other users may write to, for
// checking a working copy.
func LoadGrants(dir string, td spiffeid.TrustDomain, anyOwner bool) (*Grants, error) {
	files, err := config.ReadDir(dir, anyOwner)
	var problems config.Errors
	problems.AddErr(dir, err)
	return parseGrants(files, problems, td)
}

// ParseGrants is [LoadGrants] of files that were read.
func ParseGrants(files []config.File, td spiffeid.TrustDomain) (*Grants, error) {
	return parseGrants(files, nil, td)
}

func parseGrants(files []config.File, problems config.Errors, td spiffeid.TrustDomain) (*Grants, error) {
	g := &Grants{of: make(map[spiffeid.ID][]string), pos: make(map[spiffeid.ID]config.Pos)}
	h := sha256.New()
	for _, f := range files {
		var doc grantsDocument
		problems.AddErr(f.Path, config.Decode(f.Path, f.Data, &doc))
		for i := range doc.Grants {
			if w := &doc.Grants[i]; w.Pos.Line > 0 {
				g.add(w, td, &problems)
			}
		}
		for _, part := range [][]byte{[]byte(filepath.Base(f.Path)), f.Data} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
		if len(g.of) > maxEntries {
			problems.Add(config.Pos{File: f.Path}, "with this file there are more than %d grants; remove some", maxEntries)
			break
		}
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(g.of) > 0 {
		g.digest = [32]byte(h.Sum(nil))
	}
	return g, nil
}

func (g *Grants) add(w *writtenGrant, td spiffeid.TrustDomain, problems *config.Errors) {
	id := w.ID.Value
	switch first, twice := g.pos[id]; {
	case id.IsZero():
		return // a problem already
	case !id.MemberOf(td):
		problems.Add(w.ID.Pos, "spiffe_id %s is not in trust domain %s; this host serves nobody of another", id, td.Name())
	case id.Path() == "":
		problems.Add(w.ID.Pos, "spiffe_id %s has no path, so no workload can have it", id)
	case twice:
		problems.AddBetween(w.ID.Pos, first, "spiffe_id %s has grants at %v already; put all into one", id, first)
	}
	if len(w.Credentials) == 0 {
		problems.Add(w.Pos, "spiffe_id %s is granted nothing; name credentials, or remove the grant", id)
	}
	g.of[id], g.pos[id] = nil, w.Pos
	for _, c := range w.Credentials {
		if slices.Contains(g.of[id], c.Value) {
			problems.Add(c.Pos, "credential %.80q is granted to %s twice; remove one", c.Value, id)
		}
		g.of[id] = append(g.of[id], c.Value)
	}
}

// To returns the credentials of an identity. They are shared and must not be changed.
func (g *Grants) To(id spiffeid.ID) []string {
	if g == nil {
		return nil
	}
	return g.of[id]
}

// All returns who is granted anything, and where that is written.
func (g *Grants) All() map[spiffeid.ID]config.Pos { return g.pos }

// Digest is that of the files; zero where nothing is granted.
func (g *Grants) Digest() [32]byte { return g.digest }
