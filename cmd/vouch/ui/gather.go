package ui

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/auditor"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/cmd/vouch/ui/page"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/credential/policy"
)

// A source gathers what pages are made of. Its methods are safe for concurrent use.
type source struct {
	admin   *cli.Admin // nil: a copy of a log is looked at
	defined string     // directory of the credentials' definitions
	log     string     // where it is
	open    func() (fs.FS, func() error, error)
	history *history.History
	host    string

	mu          sync.Mutex // guards the fields below
	definitions definitions
	verified    page.Verification
}

// keptFor is how long a log's records are kept in mind: as long as the longest range.
const keptFor = 30 * 24 * time.Hour

// newSource makes one of this host, or of a copy of a log.
func newSource(o *cli.Options, dir string) (*source, error) {
	s := new(source)
	s.host, _ = os.Hostname() // without one the page has no name
	var args []string
	if dir != "" {
		args, s.host = []string{dir}, "a copy"
	} else {
		c, err := o.Load()
		if err != nil {
			return nil, err
		}
		s.admin, s.defined = cli.NewAdmin(c.AdminSocket), c.CredentialsDir
	}
	s.open = func() (fs.FS, func() error, error) {
		fsys, _, done, err := auditor.OpenLog(o, args)
		return fsys, done, err
	}
	fsys, name, done, err := auditor.OpenLog(o, args)
	s.log = name
	from, alive := time.Now().Add(-keptFor), running
	switch {
	case err != nil && dir != "":
		return nil, err
	case dir != "":
		alive = nil
		defer done()
		if from, err = lastOf(fsys); err != nil {
			return nil, err
		}
		from = from.Add(-keptFor)
	case err == nil:
		done()
	}
	s.history = history.New(history.Options{From: from, Alive: alive})
	return s, nil
}

// lastOf returns the time of a log's last record, found by looking at a few of them.
func lastOf(fsys fs.FS) (time.Time, error) {
	from, err := reader.Since(fsys, time.Now())
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	for e, err := range reader.Records(context.Background(), fsys, from) {
		if err != nil {
			return time.Time{}, err
		}
		last = e.Leaf.Time
	}
	return last, nil
}

// follow reads the log, and verifies it from time to time, until the context ends.
func (s *source) follow(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { s.history.Follow(ctx, s.open) })
	both.Go(func() { s.verifyOften(ctx) })
	both.Wait()
}

// A question is what a page is asked for.
type question struct {
	of      page.Range
	refresh time.Duration
	agent   string // SPIFFE ID; empty: all
}

// askLimit is how long the daemon may take for one answer: systemd holds the socket of one that
// cannot start.
const askLimit = 5 * time.Second

// gather asks the daemon, and takes what the log has told.
func (s *source) gather(ctx context.Context, q question) *page.Facts {
	f := &page.Facts{Now: time.Now(), Host: s.host, Range: q.of, Refresh: q.refresh, Log: s.log, Copied: s.admin == nil}
	if f.Copied {
		if last := s.history.State().Last; !last.IsZero() {
			f.Now = last.Local()
		}
	} else {
		s.ask(ctx, f)
		f.Defined, f.Unread = s.credentials()
	}
	f.Seen = s.history.View(q.of.Window(f.Now), q.agent)
	s.mu.Lock()
	f.Verified = s.verified
	s.mu.Unlock()
	return f
}

// ask has the daemon say how it is, which entries there are and which leases are held.
func (s *source) ask(ctx context.Context, f *page.Facts) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	st, err := s.admin.Status(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		f.Away = fmt.Sprintf("no answer within %s; see why with: journalctl -u vouchd", askLimit)
		return
	case err != nil:
		f.Away = err.Error()
		return
	}
	f.Daemon = &st
	if st.Credentials.Dir == "" { // it waits for something before it can serve, and its problems say for what
		return
	}
	if f.Entries, err = s.admin.Entries(ctx); err != nil {
		f.Away = err.Error()
	}
	if f.Leases, err = s.admin.Leases(ctx); err != nil {
		f.Away = err.Error()
	}
	f.Gone = make(map[int]bool)
	for _, l := range f.Leases {
		if _, err := os.Stat("/proc/" + strconv.Itoa(l.PID)); errors.Is(err, fs.ErrNotExist) {
			f.Gone[l.PID] = true
		}
	}
}

// definitions are those that were read last.
type definitions struct {
	at   time.Time
	list []page.Credential
	err  string
}

// readAgain is how long definitions that were read count as new.
const readAgain = 10 * time.Second

// credentials returns what the definitions on disk say, as vouch check reads them.
func (s *source) credentials() ([]page.Credential, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.definitions
	if time.Since(d.at) < readAgain {
		return d.list, d.err
	}
	*d = definitions{at: time.Now()}
	defs, err := credential.LoadDefinitions(s.defined, brokers.All(brokers.Deps{}), true)
	if err != nil {
		d.err = err.Error()
		return nil, d.err
	}
	defer defs.Close()
	for _, def := range defs.All() {
		d.list = append(d.list, described(def))
	}
	return d.list, ""
}

// described puts a definition into plain words.
func described(def *credential.Definition) page.Credential {
	c := page.Credential{
		Name: def.Name, Kind: def.Broker, Upstream: def.Traits.Upstream, Description: def.Description, Lifetime: def.MaxTTL, Enforced: true,
		Gives: map[credential.Deliver]string{
			credential.DeliverValue: "its value", credential.DeliverProxy: "a handle, by which vouchd makes the calls,", credential.DeliverBoth: "its value, or a handle,",
		}[def.Deliver],
	}
	if p := def.Proxy; p != nil {
		c.Enforced, c.Upstream = p.Enforce, p.Upstream
		for _, r := range p.Rules {
			var paths []string
			for _, pattern := range r.Paths {
				paths = append(paths, fmt.Sprint(pattern))
			}
			c.Rules = append(c.Rules, page.Rule{
				Name: r.Name, Allows: r.Effect == policy.Allow, What: strings.Join(r.Methods, ", ") + " " + strings.Join(paths, ", "),
				Further: strings.Join(append(conditions("query ", r.Query), conditions("content ", r.JSON)...), "; "),
			})
		}
	}
	if db := def.Database; db != nil {
		c.Upstream = db.Upstream
		what := "every statement"
		if len(db.Statements) > 0 {
			what = strings.Join(db.Statements, ", ")
		}
		if db.ReadOnly {
			what += ", read only"
		}
		c.Rules = append(c.Rules, page.Rule{Name: string(db.Protocol), Allows: true, What: what})
	}
	return c
}

// conditions puts those of a rule into words.
func conditions(of string, list []policy.Condition) (said []string) {
	for _, c := range list {
		is := "there"
		switch {
		case c.Absent:
			is = "not there"
		case len(c.OneOf) > 0:
			is = strings.Join(c.OneOf, " or ")
		case c.Matches != "":
			is = "like " + c.Matches
		case c.Max != nil:
			is = "at most " + strconv.FormatFloat(*c.Max, 'f', -1, 64)
		}
		said = append(said, of+c.At+" "+is)
	}
	return said
}

// verifyEvery is how old a verification gets before a log that has grown is verified again.
const verifyEvery = 15 * time.Minute

// verifyOften verifies the log once it was read, and again from time to time.
func (s *source) verifyOften(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var size uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st := s.history.State()
		s.mu.Lock()
		due := st.CaughtUp && (s.verified.Done.IsZero() || st.Next != size && time.Since(s.verified.Done) >= verifyEvery)
		if due {
			s.verified.Running, s.verified.Began = true, time.Now()
		}
		s.mu.Unlock()
		if due {
			size = st.Next
			s.verify(ctx)
		}
	}
}

func (s *source) verify(ctx context.Context) {
	v := page.Verification{}
	fsys, done, err := s.open()
	if err == nil {
		v.Report, err = auditor.VerifyLive(ctx, fsys)
		done()
	}
	if ctx.Err() != nil {
		return
	}
	if v.Done = time.Now(); err != nil {
		v.Report, v.Err = nil, err.Error()
	}
	s.mu.Lock()
	s.verified = v
	s.mu.Unlock()
}

// bootID is that of the kernel that runs; empty if it does not say.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// running tells whether a process that the log names still runs: the kernel gives no other
// process the same number and the same start in one boot.
func running(p history.Process) bool {
	if p.PID <= 0 || p.BootID != bootID() {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the third of proc_pid_stat(5) and on
	if len(fields) < 20 || string(fields[0]) == "Z" || string(fields[0]) == "X" {
		return false
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return err == nil && start == p.StartTime
}
