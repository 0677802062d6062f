package workloadapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/metadata"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
)

// Foreign has the bundles of other trust domains.
type Foreign interface {
	// Bundle returns the bundle in force; nil: there is none.
	Bundle(spiffeid.TrustDomain) *foreign.Bundle
	// Changed returns a channel that is closed when any of them is next replaced.
	Changed() <-chan struct{}
}

// A trust is what verifies others for one caller, at one moment: the bundle of this trust
// domain, and of the others those that its entries name, each under its own name
// (Federation §4.2).
type trust struct {
	own     *identity.Bundle
	foreign []*foreign.Bundle // in the order of names
}

func (a *API) trustOf(entries []identity.Entry) trust {
	t := trust{own: a.authority.Bundle()}
	if a.foreign == nil {
		return t
	}
	for _, e := range entries {
		for _, td := range e.FederatesWith {
			b := a.foreign.Bundle(td)
			if b != nil && !slices.ContainsFunc(t.foreign, func(f *foreign.Bundle) bool { return f.TrustDomain == td }) {
				t.foreign = append(t.foreign, b)
			}
		}
	}
	slices.SortFunc(t.foreign, func(x, y *foreign.Bundle) int { return cmp.Compare(x.TrustDomain.Name(), y.TrustDomain.Name()) })
	return t
}

// foreignChanged is closed when a bundle of another trust domain is next replaced.
func (a *API) foreignChanged() <-chan struct{} {
	if a.foreign == nil {
		return nil
	}
	return a.foreign.Changed()
}

// A part is what a stream sends of bundles.
type part struct {
	own     func(*identity.Bundle) []byte
	foreign func(*foreign.Bundle) []byte // nil: it has nothing of the kind, and is left out
}

var roots = part{
	own:     func(b *identity.Bundle) []byte { return b.X509 },
	foreign: func(b *foreign.Bundle) []byte { return b.X509 },
}

var keys = part{
	own: func(b *identity.Bundle) []byte { return b.JWKS },
	foreign: func(b *foreign.Bundle) []byte {
		if b.Keys == 0 {
			return nil
		}
		return b.JWKS
	},
}

var proofKeys = part{
	own:     func(b *identity.Bundle) []byte { return b.WITKeys },
	foreign: func(b *foreign.Bundle) []byte { return b.WITKeys },
}

// federated returns the others' bundles by their trust domains' IDs (Workload API §5.2.1).
func (p part) federated(t trust) map[string][]byte {
	m := make(map[string][]byte)
	for _, b := range t.foreign {
		if of := p.foreign(b); len(of) > 0 {
			m[b.TrustDomain.IDString()] = of
		}
	}
	return m
}

// all returns every bundle by its trust domain's ID (Workload API §5.2.2, §6.2.2).
func (p part) all(t trust, own spiffeid.TrustDomain) map[string][]byte {
	m := p.federated(t)
	m[own.IDString()] = p.own(t.own)
	return m
}

// digest differs for what differs in this part.
func (p part) digest(t trust) [sha256.Size]byte {
	h := sha256.New()
	write := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	write(p.own(t.own))
	write([]byte(strings.Join(t.own.Tainted, " ")))
	for _, b := range t.foreign {
		if of := p.foreign(b); len(of) > 0 {
			write([]byte(b.TrustDomain.Name()))
			write(of)
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// jwt returns the others' bundles, to validate tokens with.
func (t trust) jwt() (all []*jwtbundle.Bundle) {
	for _, b := range t.foreign {
		all = append(all, b.JWT)
	}
	return all
}

// sequenceHeader says, before the first message of a stream, which bundle of this trust
// domain that message has. The standard's messages have no place for it, and who serves
// the bundle to others should (Trust Domain and Bundle §4.1.1).
const sequenceHeader = "vouchd-bundle-sequence"

func (t trust) header() metadata.MD {
	return metadata.Pairs(sequenceHeader, strconv.FormatUint(t.own.Sequence, 10))
}
