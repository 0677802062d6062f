// Package witnesstest is a small witness for tests (C2SP tlog-witness): it
// checks all that a witness must and signs by the ecosystem's own library
// (transparency-dev/formats), so that what this repository makes of the
// standards is held against somebody else's reading of them. It keeps its state
// in memory and serves one log.
package witnesstest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Witness is one server and what it signed last.
type Witness struct {
	URL string // submission prefix
	Key string // verifier key

	signer note.Signer

	mu    sync.Mutex // guards the fields below
	log   note.Verifier
	last  tlog.Tree
	asked int
}

// Start starts a witness that knows no log yet.
func Start(t testing.TB, name string) *Witness {
	t.Helper()
	seed := sha256.Sum256([]byte(name + t.Name()))
	private := ed25519.NewKeyFromSeed(seed[:])
	signer, err := formats.NewSignerForCosignatureV1(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name,
		keyID(name, 1, private), base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...))))
	if err != nil {
		t.Fatal(err)
	}
	w := &Witness{signer: signer}
	public := append([]byte{4}, private.Public().(ed25519.PublicKey)...)
	w.Key = fmt.Sprintf("%s+%08x+%s", name, keyID(name, 4, private), base64.StdEncoding.EncodeToString(public))
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	w.URL = server.URL
	return w
}

func keyID(name string, kind byte, key ed25519.PrivateKey) uint32 {
	sum := sha256.Sum256(slices.Concat([]byte(name), []byte{'\n', kind}, key.Public().(ed25519.PublicKey)))
	return binary.BigEndian.Uint32(sum[:])
}

// Know has the witness serve the log with this note verifier key.
func (w *Witness) Know(t testing.TB, vkey string) {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = v
}

// Forget has the witness lose what it signed.
func (w *Witness) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = tlog.Tree{}
}

// Size returns how many records it signed last.
func (w *Witness) Size() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return uint64(w.last.N)
}

// Asked returns how many submissions came.
func (w *Witness) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// ServeHTTP implements add-checkpoint.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" {
		http.NotFound(rw, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, 64<<10))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	status, answer := w.add(body)
	if status == http.StatusConflict {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
	}
	rw.WriteHeader(status)
	rw.Write(answer)
}

func (w *Witness) add(body []byte) (status int, answer []byte) {
	old, proof, signed, err := parse(body)
	if err != nil {
		return http.StatusBadRequest, []byte(err.Error())
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	if w.log == nil || origin != w.log.Name() {
		return http.StatusNotFound, nil
	}
	n, err := note.Open(signed, note.VerifierList(w.log))
	if err != nil {
		return http.StatusForbidden, nil
	}
	now, err := tlog.ParseTree([]byte("go.sum database tree\n" + strings.TrimPrefix(n.Text, origin+"\n")))
	switch {
	case err != nil || old > now.N:
		return http.StatusBadRequest, nil
	case old != w.last.N, old == now.N && old > 0 && now.Hash != w.last.Hash:
		return http.StatusConflict, []byte(strconv.FormatInt(w.last.N, 10) + "\n")
	case old == 0 && len(proof) > 0:
		return http.StatusUnprocessableEntity, nil
	case old > 0 && old < now.N && tlog.CheckTree(proof, now.N, now.Hash, old, w.last.Hash) != nil:
		return http.StatusUnprocessableEntity, nil
	}
	w.last = now
	cosigned, err := note.Sign(&note.Note{Text: n.Text}, w.signer)
	if err != nil {
		return http.StatusInternalServerError, nil
	}
	_, lines, _ := bytes.Cut(cosigned, []byte("\n\n"))
	return http.StatusOK, lines
}

func parse(body []byte) (old int64, proof tlog.TreeProof, signed []byte, err error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	size, isOld := strings.CutPrefix(lines[0], "old ")
	if !ok || !isOld || len(lines) > 64 {
		return 0, nil, nil, errors.New("no old size line, or more than 63 hashes")
	}
	old, err = strconv.ParseInt(size, 10, 64)
	if err != nil || strconv.FormatInt(old, 10) != size || old < 0 {
		return 0, nil, nil, errors.New("the old size is no size")
	}
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, nil, err
		}
		proof = append(proof, h)
	}
	return old, proof, signed, nil
}
