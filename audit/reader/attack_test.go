package reader

import (
	"bytes"
	"context"
	"crypto/ed25519"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/writer"
	"github.com/vouchd/vouchd/state"

	crand "crypto/rand"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

func clone(m fstest.MapFS) fstest.MapFS {
	c := fstest.MapFS{}
	for name, f := range m {
		c[name] = &fstest.MapFile{Data: bytes.Clone(f.Data), Mode: f.Mode}
	}
	return c
}

// smallLog is a log with every kind of file: segments, tiles, partial tiles and
// the checkpoint.
func smallLog(t testing.TB) fstest.MapFS {
	h := newHost(t)
	h.opt.SegmentBytes = 60 << 10
	for range 2 {
		l := h.start()
		h.fill(l, l.Status().Size+200)
		h.append(l, audittest.Attested(4))
		h.stop(l)
	}
	m := h.image()
	if r := verifyImage(t, m, withTPM()); !r.OK || len(r.Findings) > 0 {
		t.Fatalf("before tampering: %s %+v", r.Verdict, r.Findings)
	}
	return m
}

func TestFlippingAnyByteOfAnyFileFails(t *testing.T) {
	t.Parallel()
	small, tiny := smallLog(t), tinyLog(t, 1).image()
	var total int
	for _, f := range small {
		total += len(f.Data)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	flipBytes(t, tiny, func() bool { return true })
	flipBytes(t, small, func() bool { return rng.IntN(total) < 300 })
}

func flipBytes(t *testing.T, m fstest.MapFS, choose func() bool) {
	t.Helper()
	tried := 0
	for name, f := range m {
		for i := range f.Data {
			if !choose() && i != 0 && i != len(f.Data)-1 {
				continue
			}
			bit := byte(1) << (tried % 8)
			tried++
			f.Data[i] ^= bit
			r, err := Verify(context.Background(), m, withTPM())
			if err == nil && r.OK {
				t.Errorf("%s: byte %d of %d flipped, and %s", name, i, len(f.Data), r.Verdict)
			}
			f.Data[i] ^= bit
		}
	}
	t.Logf("flipped %d bytes in %d files", tried, len(m))
}

// tinyLog is a few runs in as few bytes as a log can have.
func tinyLog(t testing.TB, runs int) *host {
	h := newHost(t)
	for range runs {
		l, err := writer.Open(h.dir, h.opt)
		if err != nil {
			t.Fatal(err)
		}
		h.append(l,
			audit.Record{Event: audit.EventStart, Outcome: audit.Success, Node: &audit.Node{Statement: h.tpm.Statement(h.opt.Key.Public().(ed25519.PublicKey))}},
			audit.Record{Event: audit.EventBundle, Outcome: audit.Success})
		h.stop(l)
	}
	return h
}

func TestRemovingAFileFailsUnlessAnotherHoldsItsRecords(t *testing.T) {
	t.Parallel()
	m := smallLog(t)
	whole := verifyImage(t, m, withTPM())
	failed := 0
	for name := range m {
		c := clone(m)
		delete(c, name)
		r, err := Verify(context.Background(), c, withTPM())
		if err != nil || !r.OK {
			failed++
			continue
		}
		if r.First != 0 || r.Root != whole.Root || !maps.Equal(r.Events, whole.Events) {
			t.Errorf("without %s: %s", name, r.Verdict)
		}
		if tile, err := format.ParseTilePath(name); err == nil && tile.W == format.TileWidth {
			t.Errorf("without the full tile %s: %s", name, r.Verdict)
		}
	}
	if failed == 0 {
		t.Error("no file is needed")
	}
}

// plainLog is one segment of a few records, without tiles.
func plainLog(t testing.TB) []byte {
	h := newHost(t)
	for i := range 3 {
		l := h.start()
		h.append(l, audittest.Attested(10*i))
		h.append(l, audittest.Attested(10*i+1), audittest.Attested(10*i+2))
		h.append(l, audittest.Attested(10*i+3))
		h.stop(l)
	}
	return h.image()[format.SegmentName(0)].Data
}

func oneSegment(data []byte) fstest.MapFS {
	return fstest.MapFS{format.SegmentName(0): {Data: data}}
}

func TestCuttingTheEndOffIsTold(t *testing.T) {
	t.Parallel()
	h := tinyLog(t, 2)
	whole := h.image()[format.SegmentName(0)].Data
	o := func() VerifyOptions { return VerifyOptions{TPM: &audittest.Verifier{}, Counter: h.tpm.Counter - 1} }
	if r := verifyImage(t, oneSegment(whole), o()); !r.OK {
		t.Fatal(r.Verdict)
	}
	for n := range len(whole) {
		if r := verifyImage(t, oneSegment(whole[:n]), o()); r.OK {
			t.Fatalf("cut to %d of %d bytes: %s", n, len(whole), r.Verdict)
		}
	}
}

func TestOnlyTheEndOfACleanRunHoldsByItself(t *testing.T) {
	t.Parallel()
	whole := tinyLog(t, 3).image()[format.SegmentName(0)].Data
	held, n := 0, 0
	for _, f := range frames(t, whole) {
		n += len(f)
		if r := verifyImage(t, oneSegment(whole[:n]), withTPM()); r.OK {
			held++
		}
	}
	if held != 3 {
		t.Errorf("%d copies cut between frames hold by themselves, want the 3 that end in a stop", held)
	}
}

func TestKnownCheckpointTellsAnOlderCopy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	old := h.image()
	h.stop(h.start())
	known := h.image()[format.CheckpointName].Data
	if r := verifyImage(t, h.image(), VerifyOptions{Checkpoint: known}); !r.OK {
		t.Error(r.Verdict)
	}
	r := verifyImage(t, old, VerifyOptions{Checkpoint: known})
	if r.OK || !slices.Contains(found(r, Failure), "rolled-back") {
		t.Errorf("%s %v", r.Verdict, found(r, Failure))
	}
}

// frames splits a segment.
func frames(t testing.TB, data []byte) (list [][]byte) {
	r := format.Frames(bytes.NewReader(data), 0)
	for {
		start := r.Offset()
		_, _, err := r.Next()
		if err != nil {
			return list
		}
		list = append(list, data[start:r.Offset()])
	}
}

func TestTamperingIsToldByName(t *testing.T) {
	t.Parallel()
	whole := plainLog(t)
	list := frames(t, whole)
	leaves := func(event audit.Event) (at []int) {
		for i, f := range list {
			if f[0] == format.KindLeaf && bytes.Contains(f, []byte(`"event":"`+event+`"`)) {
				at = append(at, i)
			}
		}
		return at
	}
	attests := leaves(audit.EventWorkload)
	foreign := foreignLog(t)
	for _, tt := range []struct {
		name   string
		tamper func(l [][]byte) [][]byte
		want   string
	}{
		{"two records swapped", func(l [][]byte) [][]byte {
			l[attests[1]], l[attests[2]] = l[attests[2]], l[attests[1]]
			return l
		}, "record-order"},
		{"a record changed and its checksum mended", func(l [][]byte) [][]byte {
			data := bytes.Replace(l[attests[3]][state.FrameHead:], []byte(`"uid":1000`), []byte(`"uid":1001`), 1)
			l[attests[3]] = state.AppendFrame(nil, format.KindLeaf, data)
			return l
		}, "tree-mismatch"},
		{"a record removed", func(l [][]byte) [][]byte { return slices.Delete(l, attests[1], attests[1]+1) }, "tree-mismatch"},
		{"a batch removed with its checkpoint", func(l [][]byte) [][]byte { return slices.Delete(l, attests[0], attests[0]+2) }, "tree-mismatch"},
		{"a record put in", func(l [][]byte) [][]byte { return slices.Insert(l, attests[1], l[attests[1]]) }, "tree-mismatch"},
		{"another host's record", func(l [][]byte) [][]byte { l[attests[0]] = foreign[attests[0]]; return l }, "tree-mismatch"},
		{"another host's end", func(l [][]byte) [][]byte { return append(l[:10:10], foreign[10:]...) }, "checkpoint-signature"},
		{"an unknown frame", func(l [][]byte) [][]byte { return slices.Insert(l, 3, state.AppendFrame(nil, 'X', []byte("x"))) }, "unknown-frame"},
		{"bytes behind the end", func(l [][]byte) [][]byte { return append(l, []byte("more")) }, "torn-end"},
		{"a hostile record under a good checksum", func(l [][]byte) [][]byte {
			l[attests[0]] = state.AppendFrame(nil, format.KindLeaf, []byte("{\"a\":\"\x1b[2J\"}"))
			return l
		}, "record-form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := slices.Concat(tt.tamper(slices.Clone(list))...)
			r := verifyImage(t, oneSegment(changed), withTPM())
			if got := found(r, Failure); r.OK || !slices.Contains(got, tt.want) {
				t.Errorf("%s: failures %v, want %s", r.Verdict, got, tt.want)
			}
		})
	}
}

// foreignLog is another host's, as long as plainLog.
func foreignLog(t testing.TB) [][]byte {
	h := newHost(t)
	h.opt.Origin, h.opt.Key = "other.example.org/log", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	for range 3 {
		l := h.start()
		h.append(l, audittest.Attested(1))
		h.append(l, audittest.Attested(2), audittest.Attested(3))
		h.append(l, audittest.Attested(4))
		h.stop(l)
	}
	return frames(t, h.image()[format.SegmentName(0)].Data)
}

func TestForkOfTheSameLogIsToldByAKnownCheckpoint(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	base := h.image()
	l := h.start()
	h.append(l, audittest.Attested(1), audittest.Attested(2))
	h.stop(l)
	known := h.image()[format.CheckpointName].Data
	h.put(base)
	l = h.start()
	h.append(l, audittest.Attested(3), audittest.Attested(4), audittest.Attested(5))
	h.stop(l)
	r := h.verify(VerifyOptions{TPM: &audittest.Verifier{}, Checkpoint: known})
	if got := found(r, Failure); !slices.Contains(got, "fork") || !slices.Contains(got, "counter-gap") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestSegmentOfAnotherCopyIsAFork(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 20 << 10
	h.opt.AnchorEvery = time.Hour
	l := h.start()
	h.fill(l, 100)
	h.stop(l)
	a := h.image()
	h2 := newHost(t)
	h2.opt.SegmentBytes = 20 << 10
	l = h2.start()
	h2.fill(l, 100)
	h2.stop(l)
	b := h2.image()
	firsts, err := format.Segments(a)
	if err != nil {
		t.Fatal(err)
	}
	name := format.SegmentName(firsts[1])
	if b[name] == nil {
		t.Fatalf("the copies have different segments")
	}
	for n := range a {
		if strings.HasPrefix(n, format.TileDir) || n == format.CheckpointName {
			delete(a, n)
		}
	}
	a[name] = b[name]
	r := verifyImage(t, a, withTPM())
	if got := found(r, Failure); !slices.Contains(got, "fork") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestAnchorOfAnotherTPMIsInvalid(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.append(l, audittest.Attested(1))
	h.tpm.Key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, Failure); !slices.Contains(got, "anchor-invalid") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestStatementOfAnotherMachineIsTold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.stop(h.start())
	h.tpm.Key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	h.stop(h.start())
	r := h.verify(withTPM())
	if got := found(r, Failure); !slices.Equal(got, []string{"other-machine"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestStatementForAnotherLogKeyIsTold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l, err := writer.Open(h.dir, h.opt)
	if err != nil {
		t.Fatal(err)
	}
	h.append(l, audit.Record{Event: audit.EventStart, Outcome: audit.Success, Node: &audit.Node{Statement: h.tpm.Statement(h.tpm.Key.Public().(ed25519.PublicKey))}})
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, Failure); !slices.Contains(got, "statement") {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

func TestClockSetBackADayIsAWarning(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	now := time.Now()
	h.opt.Now = func() time.Time { return now }
	l := h.start()
	now = now.Add(-24 * time.Hour)
	h.append(l, audittest.Attested(1))
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, Warning); !r.OK || !slices.Equal(got, []string{"clock-back"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

func TestIntentWithoutResultIsNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	lease := func(e audit.Event, id string) audit.Record {
		return audit.Record{Event: e, Outcome: audit.Success, RequestID: id, Credential: &audit.Credential{Name: "warehouse", Kind: "vault", Lease: "22"}}
	}
	h.append(l, lease(audit.EventLeaseIntent, "r-1"))
	h.append(l, lease(audit.EventLeaseGrant, "r-1"))
	h.append(l, lease(audit.EventLeaseIntent, "r-2"))
	h.append(l, lease(audit.EventLeaseRevokeIntent, "r-3"))
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, Warning); !slices.Equal(got, []string{"orphaned-intent", "orphaned-intent"}) {
		t.Errorf("%s: warnings %v", r.Verdict, got)
	}
}

func TestReportOfAHostileCopyIsSafeToPrint(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.start()
	h.stop(l)
	m := h.image()
	m["\x1b[2J"] = &fstest.MapFile{Data: []byte("x")}
	m["tile/entries/\x1b]0;x\x07"] = &fstest.MapFile{Data: []byte("x")}
	// A key's name may be anything but white space, says the note's format.
	vkey, signed := emptyLog(t, "evil\x1b[31m")
	hostileSegment := state.AppendFrame(nil, format.KindSegment, format.SegmentHeader{Key: vkey, Checkpoint: signed}.Marshal())
	for _, fsys := range []fstest.MapFS{m, {format.SegmentName(0): {Data: hostileSegment}}} {
		r := verifyImage(t, fsys, withTPM())
		if r.OK {
			t.Error(r.Verdict)
		}
		var b strings.Builder
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		for _, c := range b.String() {
			if c != '\n' && !unicode.IsPrint(c) {
				t.Errorf("%q in the report:\n%q", c, b.String())
			}
		}
	}
}

func TestEmptySegmentIsDamage(t *testing.T) {
	t.Parallel()
	r := verifyImage(t, oneSegment(nil), VerifyOptions{})
	if got := found(r, Failure); !slices.Equal(got, []string{"damage"}) {
		t.Errorf("%s: failures %v", r.Verdict, got)
	}
}

// emptyLog returns the key and the checkpoint of a log without records.
func emptyLog(t testing.TB, origin string) (vkey string, signed []byte) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(crand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	c := audit.Checkpoint{Origin: origin, Root: new(format.Tree).Root()}
	if signed, err = note.Sign(&note.Note{Text: c.Text()}, s); err != nil {
		t.Fatal(err)
	}
	return vkey, signed
}
