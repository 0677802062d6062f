package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Errors that tell an operator what kind of machine this is.
var (
	// ErrNoTPM means that there is no TPM at the address. There is no
	// software stand-in.
	ErrNoTPM = errors.New("no TPM 2.0 found: switch on the firmware's TPM (also called PTT or fTPM), " +
		"give the virtual machine a vTPM, or for a trial run swtpm and use its address unix:PATH")
	// ErrTPM12 means that the TPM is of the old kind, which has no keys that
	// vouchd could use.
	ErrTPM12 = errors.New("the TPM is a TPM 1.2 and vouchd needs a TPM 2.0: " +
		"look in the firmware setup for a switch to 2.0")
	// ErrClosed means that the TPM was closed by its owner.
	ErrClosed = errors.New("the TPM is closed")
)

// Time limits. A TPM on a slow bus needs most of a minute for an RSA key and
// well under a second for anything else.
const (
	operationLimit = 30 * time.Second
	creationLimit  = 2 * time.Minute
	reconnectLimit = 5 * time.Second // how long a lost TPM is waited for
	cleanLimit     = 2 * time.Second // for flushing after an operation
	firstBackOff   = 5 * time.Millisecond
	longestBackOff = 250 * time.Millisecond
)

// A TPM is an open TPM 2.0. It is one device with one queue: an operation,
// which may be several commands that share sessions and loaded keys, has the
// TPM to itself, and what it loaded is flushed when it ends, however it ends.
//
// Its methods, and those of everything made from it, are safe for concurrent
// use.
type TPM struct {
	address string
	open    func(context.Context) (link, error)
	perOp   bool // connect for each operation, which gives others a turn
	managed bool // a resource manager flushes what a lost connection leaves

	queue chan struct{} // holds one token; its owner owns the fields below
	link  link          // nil while not connected
	stale bool          // objects of a lost operation may still be loaded
	shut  bool
}

// Open opens the TPM at an address: "/dev/tpmrm0", "/dev/tpm0" or "unix:PATH",
// the socket of an swtpm. It returns [ErrNoTPM] or [ErrTPM12] if that is what
// it finds.
func Open(ctx context.Context, address string) (*TPM, error) {
	t := &TPM{address: address, queue: make(chan struct{}, 1), stale: true}
	if err := t.resolve(); err != nil {
		return nil, fmt.Errorf("opening TPM %s: %w", address, err)
	}
	t.queue <- struct{}{}
	err := t.do(ctx, "opening TPM", operationLimit, func(tr transport.TPM) error {
		_, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTFamilyIndicator), PropertyCount: 1}.Execute(tr)
		return err
	})
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close waits for the operation that runs and lets go of the TPM. Operations
// after it return [ErrClosed].
func (t *TPM) Close() error {
	<-t.queue
	defer func() { t.queue <- struct{}{} }()
	t.shut = true
	t.disconnect()
	return nil
}

// Address returns what the TPM was opened with.
func (t *TPM) Address() string { return t.address }

// do runs op with the TPM to itself, for at most limit. If the TPM is lost on
// the way (an swtpm that restarts, a driver that resets), op runs again from
// its beginning once the TPM is back, so op must bear being repeated.
func (t *TPM) do(ctx context.Context, what string, limit time.Duration, op func(transport.TPM) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-t.queue:
		defer func() { t.queue <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for TPM %s: %w", what, t.address, ctx.Err())
	}
	giveUp := time.Now().Add(reconnectLimit)
	var before error // what was wrong while there was time
	for wait := firstBackOff; ; wait = min(2*wait, longestBackOff) {
		again, err := t.attempt(ctx, op)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), t.explain(cmp.Or(before, err)))
		case !again || time.Now().After(giveUp):
			return fmt.Errorf("%s: %w", what, t.explain(err))
		}
		before = err
		pause(ctx, wait) // an attempt without time left fails at once
	}
}

// attempt runs op once and reports whether another attempt may do better: the
// connection was lost, or the TPM was full of what others left.
func (t *TPM) attempt(ctx context.Context, op func(transport.TPM) error) (again bool, err error) {
	if t.shut {
		return false, ErrClosed
	}
	if t.link == nil {
		if t.link, err = t.open(ctx); err != nil {
			return !errors.Is(err, fs.ErrPermission), err
		}
	}
	o := &operation{ctx: ctx, link: t.link}
	if t.stale && !t.managed {
		err = o.flushStale()
	}
	if err == nil {
		t.stale = false
		err = op(o)
	}
	if !o.lost {
		// What was loaded is flushed also where there was no time for more.
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		o.ctx = cleaning
		o.flush(err != nil)
		cancel()
	}
	full := !t.managed && outOfMemory(err) // another process left objects
	if o.lost || full {
		t.stale = true
	}
	if o.lost || t.perOp {
		t.disconnect()
	}
	// IMA extended a PCR between a policy's check and its use.
	raced := errors.Is(err, tpm2.TPMRCPCRChanged)
	return o.lost || full || raced, err
}

func outOfMemory(err error) bool {
	return errors.Is(err, tpm2.TPMRCObjectMemory) || errors.Is(err, tpm2.TPMRCSessionMemory) || errors.Is(err, tpm2.TPMRCSessionHandles)
}

func (t *TPM) disconnect() {
	if t.link != nil {
		t.link.Close()
		t.link = nil
	}
}

// explain adds the way out to answers that an operator can do something about.
func (t *TPM) explain(err error) error {
	var hint string
	switch {
	case errors.Is(err, tpm2.TPMRCInitialize):
		hint = "the TPM was not started; the firmware does that, and swtpm with --flags startup-clear"
	case errors.Is(err, tpm2.TPMRCFailure):
		hint = "the TPM failed its self-test; switch the machine off and on"
	case errors.Is(err, tpm2.TPMRCLockout):
		hint = "the TPM is in lockout after wrong authorisations; wait, or run tpm2_dictionarylockout --clear-lockout"
	case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
		hint = "a hierarchy of the TPM has a password and vouchd needs it to be empty; see tpm2_changeauth"
	case errors.Is(err, fs.ErrPermission):
		hint = "the daemon's user may not use the TPM; on Debian the group tss may"
	case errors.Is(err, tpm2.TPMRCNVSpace):
		hint = "the TPM's memory is full; list it with tpm2_getcap handles-nv-index and handles-persistent"
	default:
		return fmt.Errorf("TPM %s: %w", t.address, err)
	}
	return fmt.Errorf("TPM %s: %w (%s)", t.address, err, hint)
}

// An operation is the [transport.TPM] that one operation sees. It sends
// commands again that the TPM was not ready for, and remembers what was loaded.
type operation struct {
	ctx     context.Context // of this one operation; it never outlives do
	link    link
	loaded  []tpm2.TPMHandle // objects and sessions made and not flushed
	refused bool             // the TPM refused a command, so sessions may remain
	lost    bool             // the connection can no longer be used
}

// Send exchanges one command for its response.
func (o *operation) Send(command []byte) ([]byte, error) {
	for wait := firstBackOff; ; wait = min(2*wait, longestBackOff) {
		response, err := o.exchange(command)
		if err != nil {
			return nil, err
		}
		rc := responseCode(response)
		if !passing(rc) {
			o.note(command, response, rc)
			return response, nil
		}
		if err := pause(o.ctx, wait); err != nil {
			return nil, fmt.Errorf("%w, until the time was up", rc)
		}
	}
}

// Tags of responses, TPM 2.0 Part 2, 6.9.
const tagTPM12 = 0x00c4 // TPM_ST_RSP_COMMAND: all that a TPM 1.2 says to a 2.0 command

func (o *operation) exchange(command []byte) ([]byte, error) {
	if o.lost {
		return nil, errors.New("the connection was lost before")
	}
	if err := o.ctx.Err(); err != nil {
		return nil, err
	}
	response, err := o.link.exchange(o.ctx, command)
	if err != nil {
		o.lost = true
		return nil, err
	}
	if len(response) < headerLen || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
		o.lost = true
		return nil, fmt.Errorf("response of %d bytes does not fit its header", len(response))
	}
	if binary.BigEndian.Uint16(response) == tagTPM12 {
		return nil, ErrTPM12
	}
	return response, nil
}

// note follows which objects and sessions exist, TPM 2.0 Part 3: the handle of
// a new one is the first thing after the response's header.
func (o *operation) note(command, response []byte, rc tpm2.TPMRC) {
	if rc != tpm2.TPMRCSuccess {
		o.refused = true
		return
	}
	switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
	case tpm2.TPMCCLoad, tpm2.TPMCCLoadExternal, tpm2.TPMCCCreatePrimary, tpm2.TPMCCStartAuthSession:
		if len(response) >= headerLen+4 {
			o.loaded = append(o.loaded, tpm2.TPMHandle(binary.BigEndian.Uint32(response[headerLen:])))
		}
	case tpm2.TPMCCFlushContext:
		h := tpm2.TPMHandle(binary.BigEndian.Uint32(command[headerLen:]))
		o.loaded = slices.DeleteFunc(o.loaded, func(l tpm2.TPMHandle) bool { return l == h })
	}
}

// flush ends what the operation left. A session that did its work ended by
// itself, so sessions are looked after only where something went wrong.
func (o *operation) flush(failed bool) {
	failed = failed || o.refused
	for _, h := range slices.Clone(o.loaded) {
		if !isSession(h) || failed {
			// A handle that is gone already is what is wanted.
			tpm2.FlushContext{FlushHandle: h}.Execute(o)
		}
	}
}

func isSession(h tpm2.TPMHandle) bool { return h>>24 == 0x02 || h>>24 == 0x03 }

// flushStale flushes whatever a previous user left in a TPM without a resource manager,
// which has room for three objects and three sessions.
func (o *operation) flushStale() error {
	for _, first := range []uint32{0x80000000, 0x02000000} { // loaded objects, loaded sessions
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(o)
		if err != nil {
			return err
		}
		l, err := r.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range l.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(o); err != nil {
				return err
			}
		}
	}
	return nil
}

const headerLen = 10 // tag, length, code

func responseCode(response []byte) tpm2.TPMRC {
	return tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
}

// passing reports whether the TPM will take the same command a little later.
func passing(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable:
		return true
	}
	return false
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
