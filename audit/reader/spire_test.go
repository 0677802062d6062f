package reader

import (
	"slices"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

var (
	served = "spiffe://example.org/agent"
	later  = time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC)
)

func authority(id string) audit.Record {
	return audit.Record{Event: audit.EventSPIREAuthority, Outcome: audit.Success, SPIRE: &audit.SPIRE{TrustDomain: "example.org"},
		Key: &audit.Key{KeyID: id, PublicKey: []byte(id), NotAfter: later}}
}

func bundle(sequence uint64, authorities ...string) audit.Record {
	return audit.Record{Event: audit.EventSPIREBundle, Outcome: audit.Success, SPIRE: &audit.SPIRE{TrustDomain: "example.org", Sequence: sequence, Authorities: authorities}}
}

func signed(name, by, digest string) audit.Record {
	return audit.Record{Event: audit.EventSPIRESign, Outcome: audit.Success, SPIFFEID: served, SPIRE: &audit.SPIRE{Signing: name, Entry: "e1", Revision: 1},
		SVID: &audit.SVID{Kind: "x509", KeyID: by, SHA256: digest, NotAfter: later}}
}

func handedOut(name, id, digest string) audit.Record {
	return audit.Record{Event: audit.EventX509SVID, Outcome: audit.Success, SPIFFEID: id,
		SVID: &audit.SVID{Kind: "x509", KeyID: "aa", SHA256: digest, NotAfter: later, Signing: name}}
}

func TestWhatASPIREServerSignedIsTracedFromTheHandOutToTheBundle(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		records []audit.Record
		want    string // finding; empty: all holds
	}{
		"all holds":                        {[]audit.Record{authority("aa"), bundle(1, "aa"), signed("s1", "AA", "d1"), handedOut("s1", served, "d1"), handedOut("s1", served, "d1")}, ""},
		"the bundle goes on":               {[]audit.Record{authority("aa"), bundle(1, "aa"), authority("bb"), bundle(2, "aa", "bb"), signed("s1", "bb", "d1"), handedOut("s1", served, "d1")}, ""},
		"a hand-out nobody signed":         {[]audit.Record{authority("aa"), bundle(1, "aa"), handedOut("s1", served, "d1")}, "svid-without-signing"},
		"a hand-out of something else":     {[]audit.Record{authority("aa"), bundle(1, "aa"), signed("s1", "aa", "d1"), handedOut("s1", served, "d2")}, "svid-other-signing"},
		"a hand-out to another identity":   {[]audit.Record{authority("aa"), bundle(1, "aa"), signed("s1", "aa", "d1"), handedOut("s1", served+"/b", "d1")}, "svid-other-signing"},
		"a signature that nothing vouches": {[]audit.Record{authority("aa"), authority("bb"), bundle(1, "aa"), signed("s1", "bb", "d1"), handedOut("s1", served, "d1")}, "signing-authority"},
		"a signature without any bundle":   {[]audit.Record{authority("aa"), signed("s1", "aa", "d1"), handedOut("s1", served, "d1")}, "signing-authority"},
		"an authority from nowhere":        {[]audit.Record{bundle(1, "aa"), signed("s1", "aa", "d1"), handedOut("s1", served, "d1")}, "bundle-authority"},
		"an authority of this host's":      {[]audit.Record{{Event: audit.EventJWTKey, Outcome: audit.Success, Key: &audit.Key{KeyID: "aa", PublicKey: []byte("k")}}, bundle(1, "aa")}, "bundle-authority"},
		"a bundle that goes back":          {[]audit.Record{authority("aa"), bundle(2, "aa"), bundle(1, "aa")}, "bundle-back"},
		"a record of a signing without it": {[]audit.Record{authority("aa"), bundle(1, "aa"), {Event: audit.EventSPIRESign, Outcome: audit.Success, SPIRE: &audit.SPIRE{}}}, "signing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			l := h.start()
			h.append(l, tt.records...)
			h.stop(l)
			r := h.verify(withTPM())
			switch failures := found(r, Failure); {
			case tt.want == "" && !r.OK:
				t.Errorf("failures %q", failures)
			case tt.want != "" && !slices.Equal(failures, []string{tt.want}):
				t.Errorf("failures %q, want %s", failures, tt.want)
			}
		})
	}
}

// A copy without the first segments says what it cannot tell, and fails for nothing of it.
func TestACopyThatBeginsLaterTracesWhatItHas(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 8 << 10
	l := h.start()
	h.append(l, authority("aa"), bundle(1, "aa"), signed("s1", "aa", "d1"))
	for range 100 {
		h.append(l, handedOut("s1", served, "d1"))
	}
	h.append(l, signed("s2", "aa", "d2"), handedOut("s2", served, "d2"), authority("bb"), bundle(2, "aa", "bb"), signed("s3", "bb", "d3"), handedOut("s3", served, "d3"))
	h.stop(l)
	image := h.image()
	if _, ok := image[format.SegmentName(0)]; !ok {
		t.Fatalf("no first segment among %q", h.files())
	}
	delete(image, format.SegmentName(0))
	r := verifyImage(t, image, withTPM())
	if failures := found(r, Failure); !slices.Equal(failures, []string{"records-missing"}) {
		t.Errorf("failures %q: %s", failures, r.Verdict)
	}
	for _, want := range []string{"svid-signing-earlier", "signing-bundle-earlier"} {
		if !slices.Contains(found(r, Note), want) {
			t.Errorf("no note %s among %q", want, found(r, Note))
		}
	}
}
