// Package witness has others sign that they saw the attestation log.
//
// A witness (C2SP tlog-witness) remembers the newest state of a log that it
// signed, and signs another only if that continues it. So a log that is set back,
// or that tells two people two histories, is found out by the witness, which is
// beyond the reach of whoever has root on this machine. What it signed is kept
// with the log, for reader.Verify.
//
// A [Client] submits what the log has published. It reads the log's files and is
// on no request's way: a witness that is slow, away or wrong costs nothing but its
// signature, and the client's [Stats] say so. A witness learns the log's name, its
// size and its root, and nothing of its records.
package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
)

// ErrHistory means that a witness has signed another history of this log: the
// log was set back or forked, or the witness errs.
var ErrHistory = errors.New("the witness has seen another history of this log")

// Options say what is submitted, and to whom. All but Refused and Logger are
// needed.
type Options struct {
	URL      string // the witness's submission prefix
	Key      string // the witness's verifier key, name+hash+key
	Interval time.Duration
	Timeout  time.Duration // for one try
	Dir      string        // the log's directory
	LogKey   string        // the log's note verifier key
	// Refused is called when the witness is found to have seen another history,
	// and not again until it has signed once more; may be nil.
	Refused func(ctx context.Context, reason string) error
	Logger  *slog.Logger // slog.Default if nil
}

// A Client submits one log to one witness.
type Client struct {
	opt     Options
	witness *reader.Witness
	log     note.Verifier
	http    http.Client

	submitting sync.Mutex // one submission at a time; guards size and reported
	size       uint64     // that the witness is known to have signed
	reported   bool       // that it has seen another history

	mu    sync.Mutex // guards stats
	stats Stats
}

// Stats are what a witness did of late.
type Stats struct {
	Name    string    // the witness's
	Size    uint64    // records that it signed last; 0: none
	Time    time.Time // when, by its clock
	Err     error     // why the last try failed; nil after one that did not
	History bool      // it failed because the witness has seen another history
}

// New makes a client; Run runs it.
func New(o Options) (*Client, error) {
	w, err := reader.ParseWitness(o.Key)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(o.LogKey)
	if err != nil {
		return nil, fmt.Errorf("log's key: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	c := &Client{opt: o, witness: w, log: v, stats: Stats{Name: w.Name()}, http: http.Client{
		Transport:     transport,
		Timeout:       o.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	kept, err := w.Kept(os.DirFS(o.Dir), o.LogKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("what witness %s signed: %w; remove the file, and the witness is asked anew", w.Name(), err)
	default:
		c.size, c.stats.Size, c.stats.Time = kept.Size, kept.Size, kept.Time
	}
	return c, nil
}

// Close ends connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Stats returns what the witness did of late.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Run submits the log every interval until ctx ends.
func (c *Client) Run(ctx context.Context) {
	tick := time.NewTicker(c.opt.Interval)
	defer tick.Stop()
	for {
		before := c.Stats().Err
		err := c.Submit(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && before == nil:
			c.opt.Logger.Warn("the attestation log is not witnessed", "witness", c.witness.Name(), "err", err)
		case err == nil && before != nil:
			c.opt.Logger.Info("the attestation log is witnessed again", "witness", c.witness.Name())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Submit has the witness sign what the log has published, once, and keeps that.
// A log that has published nothing yet is no error.
func (c *Client) Submit(ctx context.Context) error {
	c.submitting.Lock()
	defer c.submitting.Unlock()
	signed, err := c.submit(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, ErrHistory) {
		err = errors.Join(err, c.refused(ctx, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Err, c.stats.History = err, errors.Is(err, ErrHistory)
	if err == nil {
		c.stats.Size, c.stats.Time = signed.Size, signed.Time
		c.size, c.reported = signed.Size, false
	}
	return err
}

func (c *Client) refused(ctx context.Context, err error) error {
	if c.reported || c.opt.Refused == nil {
		return nil
	}
	if err := c.opt.Refused(ctx, err.Error()); err != nil {
		return err
	}
	c.reported = true
	return nil
}

func (c *Client) submit(ctx context.Context) (signed reader.Cosigned, err error) {
	old := c.size
	for range 2 { // the witness may have to say first what it signed last
		var theirs uint64
		signed, theirs, err = c.try(ctx, old)
		if !errors.Is(err, errOldSize) || theirs == old {
			break
		}
		old = theirs
	}
	if errors.Is(err, errOldSize) {
		err = fmt.Errorf("witness %s: %w: it takes neither a state that continues what it signed before, nor one that continues what it says now", c.witness.Name(), ErrHistory)
	}
	if err != nil {
		return reader.Cosigned{}, err
	}
	if err := keep(c.opt.Dir, c.witness, signed); err != nil {
		return reader.Cosigned{}, fmt.Errorf("keeping what witness %s signed: %w", c.witness.Name(), err)
	}
	return signed, nil
}

// keep stores what the witness signed with the log in dir, durably, replacing
// what it signed before.
func keep(dir string, w *reader.Witness, c reader.Cosigned) error {
	file, contents := w.File(c)
	name := filepath.Join(dir, file)
	if err := os.Mkdir(filepath.Dir(name), 0o700); err == nil {
		if err := syncPath(dir); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp := name + format.TempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(contents)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp) // its space is needed where the disk is full
		return err
	}
	return syncPath(filepath.Dir(name))
}

func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// errOldSize means that the witness signed another size last than was thought.
var errOldSize = errors.New("signed another size last")

// try submits once. With errOldSize it returns the size that the witness says it
// signed last.
func (c *Client) try(ctx context.Context, old uint64) (signed reader.Cosigned, theirs uint64, err error) {
	checkpoint, now, proof, err := reader.Extend(os.DirFS(c.opt.Dir), old, c.opt.LogKey)
	if errors.Is(err, reader.ErrShorter) {
		return signed, 0, fmt.Errorf("witness %s: %w: it signed %d records, and the log has %d", c.witness.Name(), ErrHistory, old, now.Size)
	}
	if err != nil {
		return signed, 0, err
	}
	status, kind, answer, err := c.post(ctx, request(old, proof, checkpoint))
	if err != nil {
		return signed, 0, fmt.Errorf("asking witness %s: %w", c.witness.Name(), err)
	}
	switch status {
	case http.StatusOK:
		signed, err = c.witness.Cosigned(checkpoint, answer, c.log)
	case http.StatusConflict:
		if theirs, err = conflict(kind, answer); err == nil {
			err = c.otherSize(old, theirs, now.Size)
		}
	case http.StatusUnprocessableEntity:
		err = fmt.Errorf("%w: it does not accept that the log of %d records continues the %d that it signed", ErrHistory, now.Size, old)
	case http.StatusNotFound, http.StatusForbidden:
		err = fmt.Errorf("it does not know this log (status %d); give its operator the log's key, %s", status, c.opt.LogKey)
	default:
		err = fmt.Errorf("status %d", status)
		if status >= 300 && status < 400 {
			err = fmt.Errorf("it redirects (status %d), which is not followed; name the URL that it leads to", status)
		}
	}
	if err != nil {
		err = fmt.Errorf("witness %s: %w", c.witness.Name(), err)
	}
	return signed, theirs, err
}

// otherSize judges what a witness says it signed last.
func (c *Client) otherSize(old, theirs, now uint64) error {
	switch {
	case theirs > now:
		return fmt.Errorf("%w: it signed %d records, and the log has %d", ErrHistory, theirs, now)
	case theirs == old:
		return fmt.Errorf("%w: it signed other %d records than those of this log", ErrHistory, theirs)
	case theirs < old:
		c.opt.Logger.Warn("the witness has forgotten what it signed of the attestation log", "witness", c.witness.Name(), "signed", old, "says", theirs)
	}
	return errOldSize
}

// conflict reads the size in an answer (C2SP tlog-witness, add-checkpoint).
func conflict(kind string, answer []byte) (uint64, error) {
	text, ok := strings.CutSuffix(string(answer), "\n")
	size, err := strconv.ParseUint(text, 10, 47)
	if !ok || err != nil || strconv.FormatUint(size, 10) != text || kind != "text/x.tlog.size" {
		return 0, fmt.Errorf("status %d without the size that it signed last", http.StatusConflict)
	}
	return size, nil
}

// request is the body of add-checkpoint.
func request(old uint64, proof [][32]byte, checkpoint []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", old)
	for _, h := range proof {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(checkpoint)
	return b.Bytes()
}

// maxAnswer bounds an answer, in bytes: signature lines of a few keys.
const maxAnswer = 16 << 10

func (c *Client) post(ctx context.Context, body []byte) (status int, kind string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.opt.URL, "/")+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("it answered with more than %d bytes", maxAnswer)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), answer, err
}
