package foreign

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
)

const (
	usualInterval = 5 * time.Minute // where the bundle says none (Federation §4.1)
	minInterval   = time.Minute
	maxInterval   = 24 * time.Hour
	firstRetry    = 10 * time.Second // doubled up to the interval, while there is no bundle
	lookEvery     = time.Minute      // at bundle files
	maxStart      = 30 * time.Second // after the start, until an endpoint is asked whose bundle is kept
)

var (
	errWentBack = errors.New("the bundle is older than the one in force")
	errFile     = errors.New("bundle_file cannot be used")
	errNoBundle = errors.New("there is no root to verify the endpoint with; get the bundle another way and name it as bundle_file")
)

// A Store keeps small files durably. Load's error satisfies [fs.ErrNotExist] if there is
// none of the name.
type Store interface {
	Load(name string, version int) (data []byte, savedVersion int, err error)
	Save(name string, version int, data []byte) error
	Remove(name string) error
}

// A Fetcher asks a domain's endpoint. Roots are what an https_spiffe one is verified with.
type Fetcher interface {
	Fetch(ctx context.Context, d Domain, roots x509bundle.Source) ([]byte, error)
}

// A Decision is about a bundle that came.
type Decision struct {
	Domain Domain
	Bundle *Bundle // nil: none that could be read
	Source string  // the endpoint, or the file
	Err    error   // why it is not taken; nil: it is
	Absent bool    // Err is that there was no answer
}

// Options configure a keeper. All but Logger are needed.
type Options struct {
	Store   Store
	Fetcher Fetcher
	// Record makes a decision durable before it takes effect. Where it fails, the bundle in
	// force stays.
	Record func(context.Context, Decision) error
	Logger *slog.Logger
}

// A Keeper has the last good bundle of each domain. It is safe for concurrent use.
type Keeper struct {
	o Options

	applying sync.Mutex // held while goroutines are begun or stopped
	storing  sync.Mutex // held while the index and what it names change

	mu      sync.Mutex // guards the fields below, and those of each held
	ctx     context.Context
	domains []*held
	changed chan struct{} // closed and replaced when a bundle in force is another
	running sync.WaitGroup
}

// A held is what is kept of one domain. Its fields below the blank line are guarded by the
// keeper's mu, and change only in the domain's own goroutine, once that runs.
type held struct {
	Domain
	kick   chan struct{} // ask at once
	look   chan struct{} // read the file at once
	cancel context.CancelFunc
	done   chan struct{} // closed once the goroutine has ended; nil: it was not begun

	bundle  *Bundle // nil: none yet
	highest uint64  // sequence so far
	file    [sha256.Size]byte
	since   time.Time // the bundle's contents are in force
	fetched time.Time // the endpoint's last good answer
	saved   time.Time // fetched, as the store has it
	next    time.Time // when the endpoint is asked
	failed  int       // times in a row
	err     error     // of the endpoint; nil: its last answer was good
	fileErr error
	broken  error            // what is kept can't be read, so nothing is taken
	told    map[string]error // by source: the kind of what was recorded last, unless a bundle was taken since
}

// NewKeeper returns a keeper that has no domains yet.
func NewKeeper(o Options) *Keeper {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Keeper{o: o, changed: make(chan struct{})}
}

// Changed returns a channel that is closed when any bundle is next replaced. Take it before
// Bundle, so as to miss nothing.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Bundle returns the bundle in force of a trust domain, nil if there is none.
func (k *Keeper) Bundle(td spiffeid.TrustDomain) *Bundle {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.domains {
		if h.TrustDomain == td {
			return h.bundle
		}
	}
	return nil
}

// GetX509BundleForTrustDomain is what endpoints are verified with.
func (k *Keeper) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b := k.Bundle(td); b != nil && len(b.Roots) > 0 {
		return b.x509Bundle(), nil
	}
	return nil, fmt.Errorf("trust domain %s: %w", td, errNoBundle)
}

// Apply puts other domains in force. It returns once what the store and the files have of
// them is.
func (k *Keeper) Apply(ctx context.Context, ds *Domains) {
	k.applying.Lock()
	defer k.applying.Unlock()
	k.mu.Lock()
	before, running := k.domains, k.ctx
	k.mu.Unlock()
	var next, begun []*held
	kept := make(map[*held]bool)
	for _, d := range ds.All() {
		h := find(before, d.TrustDomain)
		if h == nil || !same(h.Domain, d) {
			h = k.renew(h, d)
			begun = append(begun, h)
		}
		kept[h] = true
		next = append(next, h)
	}
	k.mu.Lock()
	k.domains = next
	k.tell()
	k.mu.Unlock()
	for _, h := range before {
		if !kept[h] {
			h.stop()
		}
	}
	for _, h := range begun {
		k.load(ctx, h)
	}
	if running != nil {
		for _, h := range begun {
			k.begin(running, h, 0)
		}
	}
}

func find(hs []*held, td spiffeid.TrustDomain) *held {
	for _, h := range hs {
		if h.TrustDomain == td {
			return h
		}
	}
	return nil
}

// same reports whether two say the same, wherever they are written.
func same(a, b Domain) bool {
	a.Pos, b.Pos = config.Pos{}, config.Pos{}
	return a == b
}

// renew returns a domain that is asked from now on, with what is known of it if it was known
// under other parameters.
func (k *Keeper) renew(old *held, d Domain) *held {
	h := &held{Domain: d, told: make(map[string]error), kick: make(chan struct{}, 1), look: make(chan struct{}, 1)}
	if old != nil {
		old.stop()
		k.mu.Lock()
		defer k.mu.Unlock()
		h.bundle, h.highest, h.file, h.since, h.fetched, h.saved = old.bundle, old.highest, old.file, old.since, old.fetched, old.saved
	}
	return h
}

func (h *held) stop() {
	if h.done != nil {
		h.cancel()
		<-h.done
	}
}

// Run asks the endpoints and looks at the files until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	k.applying.Lock()
	k.mu.Lock()
	k.ctx = ctx
	hs := k.domains
	k.mu.Unlock()
	for _, h := range hs {
		k.begin(ctx, h, maxStart)
	}
	k.applying.Unlock()
	<-ctx.Done()
	k.applying.Lock()
	k.mu.Lock()
	k.ctx = nil
	k.mu.Unlock()
	k.applying.Unlock()
	k.running.Wait()
}

// begin has a domain followed. One whose endpoint has answered before waits a moment, so
// hosts that start together do not ask together.
func (k *Keeper) begin(ctx context.Context, h *held, most time.Duration) {
	ctx, h.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	h.done = done
	k.mu.Lock()
	if h.next = time.Now().Round(0); !h.fetched.IsZero() && most > 0 {
		h.next = h.next.Add(rand.N(most))
	}
	k.mu.Unlock()
	k.running.Go(func() {
		defer close(done)
		k.follow(ctx, h)
	})
}

// Ask has every endpoint asked now, whenever it is due.
func (k *Keeper) Ask() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.domains {
		wake(h.kick)
	}
}

// Look has every bundle file read now: one may have changed.
func (k *Keeper) Look() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.domains {
		wake(h.look)
	}
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is to wake anyway
	}
}

// follow keeps one domain's bundle fresh. A slow endpoint delays nobody else's.
func (k *Keeper) follow(ctx context.Context, h *held) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, asked := lookEvery, false
		if k.locked(func() bool { return h.Endpoint != "" && h.broken == nil }) {
			wait = min(wait, k.left(h))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-h.kick:
			asked = true
		case <-h.look:
		case <-timer.C:
		}
		k.load(ctx, h)
		if k.locked(func() bool { return h.Endpoint != "" && h.broken == nil }) && (asked || k.left(h) == 0) {
			k.fetch(ctx, h)
		}
	}
}

// left is how long until the endpoint is to be asked. Time goes by the wall clock, which
// counts while the machine sleeps; one that was set back does not put it off for long.
func (k *Keeper) left(h *held) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := h.next.Sub(time.Now().Round(0))
	if left < 0 || left > maxInterval {
		return 0
	}
	return left
}

// fetch asks the endpoint, and takes what it answers if that may be in force.
func (k *Keeper) fetch(ctx context.Context, h *held) {
	b, err := k.ask(ctx, h)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = k.take(ctx, h, arrival{bundle: b, source: h.Endpoint})
	} else {
		k.refuse(ctx, h, b, h.Endpoint, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		if h.err != nil {
			k.o.Logger.Info("the bundle endpoint answers again", "trust_domain", h.TrustDomain)
		}
		h.failed = 0
	} else {
		h.failed++
	}
	h.err = err
	h.next = time.Now().Round(0).Add(h.pause())
}

func (k *Keeper) ask(ctx context.Context, h *held) (*Bundle, error) {
	if h.Profile == SPIFFE {
		if _, err := k.GetX509BundleForTrustDomain(h.EndpointID.TrustDomain()); err != nil {
			return nil, err
		}
	}
	document, err := k.o.Fetcher.Fetch(ctx, h.Domain, k)
	if err != nil {
		return nil, err
	}
	b, err := ParseBundle(h.TrustDomain, document)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if b.sequenced && b.Sequence < h.highest {
		return b, fmt.Errorf("%w: its sequence is %d after %d; if the trust domain was set up anew, get its bundle another way and name it as bundle_file", errWentBack, b.Sequence, h.highest)
	}
	return b, nil
}

// pause is how long the endpoint is left alone now: what its bundle hints at, a little less
// so that hosts do not all come at once, and no more after a failure (Federation §6.2).
func (h *held) pause() time.Duration {
	d := usualInterval
	if h.bundle != nil && h.bundle.Hint > 0 {
		d = min(max(h.bundle.Hint, minInterval), maxInterval)
	}
	if h.bundle == nil && h.failed > 0 {
		d = min(d, firstRetry<<min(h.failed-1, 10))
	}
	return d - rand.N(d/10)
}

// readFile takes the bundle file's contents if they are others than those that were taken
// last. Then they count as the latest, whatever came from the endpoint before
// (Federation §4.2).
func (k *Keeper) readFile(ctx context.Context, h *held) {
	if h.File == "" {
		return
	}
	b, err := ReadBundle(h.Domain)
	var digest [sha256.Size]byte
	if err == nil {
		digest = sha256.Sum256(b.document)
		if k.locked(func() bool { return digest == h.file && h.bundle != nil }) {
			k.locked(func() bool { h.fileErr = nil; delete(h.told, h.File); return true })
			return
		}
	}
	if err == nil {
		err = k.take(ctx, h, arrival{bundle: b, source: h.File, file: digest})
	} else {
		err = fmt.Errorf("%w: %w", errFile, err)
		k.refuse(ctx, h, b, h.File, err)
	}
	k.locked(func() bool { h.fileErr = err; return true })
}

func (k *Keeper) locked(f func() bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return f()
}

// An arrival is a bundle that may be taken.
type arrival struct {
	bundle *Bundle
	source string            // where it is from
	file   [sha256.Size]byte // of the file it is; zero: the endpoint's
}

// take puts a bundle in force: recorded, stored, and then served.
func (k *Keeper) take(ctx context.Context, h *held, a arrival) error {
	b, now := a.bundle, time.Now()
	k.mu.Lock()
	s := h.stored()
	s.Document = string(b.document)
	if a.file != [sha256.Size]byte{} {
		s.Highest, s.File = b.Sequence, hexOf(a.file)
	} else {
		a.file = h.file
		s.Highest, s.Fetched = max(h.highest, b.Sequence), now
	}
	other := h.bundle == nil || h.bundle.Digest != b.Digest
	// That an endpoint was asked is not worth a write each time.
	save := other || s.Highest != h.highest || a.file != h.file || h.bundle.Hint != b.Hint || s.Fetched.Sub(h.saved) > time.Hour
	k.mu.Unlock()
	if other {
		s.Since = now
		if err := k.o.Record(ctx, Decision{Domain: h.Domain, Bundle: b, Source: a.source}); err != nil {
			return fmt.Errorf("recording the bundle of %s: %w", h.TrustDomain, err)
		}
	}
	if save {
		if err := k.save(s); err != nil {
			return fmt.Errorf("keeping the bundle of %s: %w", h.TrustDomain, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	h.bundle, h.highest, h.file, h.since, h.fetched = b, s.Highest, a.file, s.Since, s.Fetched
	delete(h.told, a.source)
	if save {
		h.saved = s.Fetched
	}
	if other {
		k.o.Logger.Info("bundle in force", "trust_domain", h.TrustDomain, "from", a.source, "sequence", b.Sequence, "roots", len(b.Roots), "keys", b.Keys)
		k.tell()
	}
	return nil
}

// refuse records and logs why a bundle is not taken, the first time in a row.
func (k *Keeper) refuse(ctx context.Context, h *held, b *Bundle, source string, err error) {
	kind := kindOf(err)
	if k.locked(func() bool { return h.told[source] == kind }) {
		return
	}
	k.o.Logger.Warn("the bundle in force stays", "trust_domain", h.TrustDomain, "from", source, "err", printable(err))
	d := Decision{Domain: h.Domain, Bundle: b, Source: source, Err: errors.New(printable(err)), Absent: kind == errUnreachable}
	if err := k.o.Record(ctx, d); err != nil {
		k.o.Logger.Error("recording that a bundle is refused", "trust_domain", h.TrustDomain, "err", err)
		return
	}
	k.locked(func() bool { h.told[source] = kind; return true })
}

func kindOf(err error) error {
	for _, kind := range []error{errFile, errNoBundle, errCertificate, errUnreachable, errWentBack, errOther, errDocument} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errDocument
}

// tell wakes those who wait for a change. The caller holds mu.
func (k *Keeper) tell() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// A Status says how a domain stands.
type Status struct {
	Domain
	Bundle   *Bundle   // in force; nil: none
	Since    time.Time // it has these roots and keys
	Fetched  time.Time // the endpoint's last good answer; zero: never
	Next     time.Time // when the endpoint is asked; zero: it is not
	Err      error     // what is wrong with the endpoint or the file
	Passing  bool      // Err is that the endpoint was not reached, and that not often
	Outdated bool      // all roots have expired
}

// Status says how each domain stands.
func (k *Keeper) Status() (all []Status) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.domains {
		s := Status{Domain: h.Domain, Bundle: h.bundle, Since: h.since, Fetched: h.fetched, Next: h.next}
		if err := cmp.Or(h.broken, h.fileErr, h.err); err != nil {
			s.Err = errors.New(printable(err))
			s.Passing = h.broken == nil && h.fileErr == nil && kindOf(h.err) == errUnreachable && h.failed < 3
		}
		s.Outdated = h.bundle != nil && len(h.bundle.Roots) > 0 && expired(h.bundle.Roots, time.Now())
		all = append(all, s)
	}
	return all
}

func expired(roots []*x509.Certificate, now time.Time) bool {
	for _, r := range roots {
		if now.Before(r.NotAfter) {
			return false
		}
	}
	return true
}
