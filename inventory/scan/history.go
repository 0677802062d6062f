package scan

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/inventory"
)

// Bounds of one repository's history.
const (
	maxObjects = 2_000_000
	maxObject  = 1 << 20  // bytes; larger ones are data
	maxHistory = 20 << 30 // bytes that are looked at
	historyFor = 30 * time.Minute
	silentFor  = 5 * time.Minute // git may read what has no end
)

// git is a command of git's that neither reads settings of anybody's but the repository's
// own, nor runs a program that those name: it asks for objects alone, fetches none, and
// shows nothing.
func git(ctx context.Context, repo string, args ...string) *exec.Cmd {
	safe := []string{
		"--git-dir=" + repo, "--no-pager", "--no-replace-objects", "--no-optional-locks", "--literal-pathspecs",
		"-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.sshCommand=false",
		"-c", "core.alternateRefsCommand=true", "-c", "protocol.allow=never", "-c", "log.showSignature=false", "-c", "gpg.program=false",
		"-c", "diff.external=", "-c", "core.attributesFile=/dev/null", "-c", "core.useReplaceRefs=false", "-c", "log.mailmap=false",
	}
	cmd := exec.CommandContext(ctx, "git", append(safe, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0", "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=", "GIT_ASKPASS=/bin/false", "GIT_ATTR_NOSYSTEM=1",
	}
	cmd.Dir = "/"
	return cmd
}

// An object is a file as it was in some commits.
type object struct{ id, path string }

// A reading is that of one repository's history.
type reading struct {
	*run
	ctx  context.Context
	repo string
	seen map[string]bool     // fingerprints
	born map[string]*arrival // of objects that have findings
	more func()              // says that git still answers
}

// history reads every file that was ever committed to a repository.
func (r *run) history(repo string) {
	r.result.Counts.Repositories++
	ctx, cancel := context.WithTimeout(r.ctx, historyFor)
	defer cancel()
	silent := time.AfterFunc(silentFor, cancel)
	defer silent.Stop()
	h := reading{
		run: r, ctx: ctx, repo: repo, seen: make(map[string]bool), born: make(map[string]*arrival),
		more: func() { silent.Reset(silentFor) },
	}
	err := mayAsk(repo)
	if err == nil {
		err = h.objects()
	}
	if err != nil && r.ctx.Err() == nil {
		if ctx.Err() != nil {
			err = errors.New("git takes too long to read its history; the rest of it was not read")
		}
		r.unread(repo, err)
	}
}

// mayAsk returns an error for a repository with a pipe or a device in the place of a file,
// at which git would wait, or that it would read without end.
func mayAsk(repo string) error {
	for _, name := range []string{"HEAD", "config", "config.worktree", "packed-refs", "shallow", "commondir", "info/attributes", "objects/info/alternates"} {
		info, err := os.Stat(filepath.Join(repo, name))
		if err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file", name)
		}
	}
	return nil
}

// objects has one git list the objects, and another one give their contents.
func (r *reading) objects() error {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	listing, enough := context.WithCancel(ctx)
	defer enough()
	list := git(listing, r.repo, "rev-list", "--all", "--reflog", "--objects", "--missing=allow-promisor", "--filter=blob:limit="+strconv.Itoa(maxObject))
	contents := git(ctx, r.repo, "cat-file", "--batch", "--buffer")
	listed, err := list.StdoutPipe()
	if err != nil {
		return err
	}
	ask, err := contents.StdinPipe()
	if err != nil {
		return err
	}
	answers, err := contents.StdoutPipe()
	if err != nil {
		return err
	}
	if err := list.Start(); err != nil {
		return fmt.Errorf("running git: %w", err)
	}
	if err := contents.Start(); err != nil {
		cancel()
		return errors.Join(fmt.Errorf("running git: %w", err), list.Wait())
	}
	asked, problem := make(chan object, 1<<16), make(chan error, 1)
	go func() {
		err := r.ask(ctx, listed, ask, asked)
		if err != nil {
			enough() // it writes what nobody reads
		}
		if ended := list.Wait(); err == nil && ended != nil {
			err = fmt.Errorf("git does not list all of its objects: %w", ended)
		}
		problem <- err
	}()
	err = r.contents(bufio.NewReaderSize(answers, 64<<10), asked)
	if err != nil {
		cancel() // what still asks ends
	}
	for range asked {
	}
	err = cmp.Or(err, <-problem)
	cancel()
	contents.Wait() // what it ends with, its output has told
	return err
}

// ask asks for each file that is listed.
func (r *reading) ask(ctx context.Context, listed io.Reader, ask io.WriteCloser, asked chan<- object) error {
	defer close(asked)
	defer ask.Close()
	w := bufio.NewWriter(ask)
	defer w.Flush()
	lines := bufio.NewScanner(listed)
	lines.Buffer(nil, 1<<20)
	for n := 0; lines.Scan(); {
		r.more()
		id, path, ok := strings.Cut(lines.Text(), " ")
		if !ok || path == "" || r.excludedWithin(path) {
			continue // a commit
		}
		if n++; n > maxObjects {
			return fmt.Errorf("it has more than %d objects; the rest of them was not read", maxObjects)
		}
		if _, err := fmt.Fprintln(w, id); err != nil {
			return err
		}
		select {
		case asked <- object{id, path}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return lines.Err()
}

// excludedWithin reports whether whoever asks wants a path of a commit left out.
func (r *run) excludedWithin(path string) bool {
	for {
		if r.excluded(path) {
			return true
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return false
		}
		path = path[:i]
	}
}

// contents reads what git answers for each object.
func (r *reading) contents(answers *bufio.Reader, asked <-chan object) error {
	var total int64
	var buf []byte
	for o := range asked {
		r.more()
		head, err := answers.ReadString('\n')
		if err != nil {
			return errors.New("git did not give all of its objects")
		}
		fields := strings.Fields(head)
		if len(fields) == 2 && fields[1] == "missing" {
			continue // of a partial clone
		}
		if len(fields) != 3 {
			return errors.New("git said what nobody understands")
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || size < 0 {
			return errors.New("git said what nobody understands")
		}
		if fields[1] != "blob" || size > maxObject {
			if _, err := io.CopyN(io.Discard, answers, size+1); err != nil {
				return err
			}
			continue
		}
		buf = append(buf[:0], make([]byte, size+1)...)
		if _, err := io.ReadFull(answers, buf); err != nil {
			return err
		}
		r.result.Counts.Objects++
		r.Files.Add(1)
		r.object(o, buf[:size])
		if total += size; total > maxHistory {
			return fmt.Errorf("its history has more than %d bytes; the rest of it was not read", int64(maxHistory))
		}
	}
	clear(buf)
	return r.commits()
}

// object has a file read as its kind, or as text.
func (r *reading) object(o object, data []byte) {
	kind, known := inventory.KindOf(o.path)
	if !known {
		kind = inventory.History
	}
	found, _ := inventory.ReadFile(kind, o.path, data) // what made no sense at some time is nobody's concern now
	for _, f := range found {
		mark := r.Key.print(f.Value)
		if f.Leased || f.File != "" || r.seen[mark] {
			f.Value.Wipe()
			continue
		}
		r.seen[mark] = true
		f.Kind, f.Hint = inventory.History, ""
		f.Replace = "rotate it at its source: it stays in every clone, whatever is edited"
		n := len(r.result.Findings)
		f.Path = "git:" + strings.TrimSuffix(r.repo, "/.git") + ":" + o.path
		r.take([]inventory.Finding{f}, func(f *inventory.Finding) {
			if st, err := lstat(r.repo); err == nil {
				f.Owner = r.people.user(st.Uid)
				f.Access, f.Readers = r.people.readers(&st, r.people.reachOf(r.repo))
			}
		})
		if len(r.result.Findings) > n {
			if r.born[o.id] == nil {
				r.born[o.id] = &arrival{path: o.path}
			}
			r.born[o.id].found = append(r.born[o.id].found, n)
		}
	}
}

// An arrival is of an object that has findings.
type arrival struct {
	path  string
	found []int
}

// commits tells of each object that has findings in which commit it came, if not by a
// merge.
func (r *reading) commits() error {
	if len(r.born) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	log := git(ctx, r.repo, "log", "--all", "--reflog", "--reverse", "--no-show-signature", "--no-ext-diff", "--no-textconv", "--no-renames", "--root", "--raw", "--no-abbrev", "--format=%h %ct")
	out, err := log.StdoutPipe()
	if err != nil {
		return err
	}
	if err := log.Start(); err != nil {
		return fmt.Errorf("running git: %w", err)
	}
	defer log.Wait() // its output has told all there is
	defer cancel()
	id, at := "", time.Time{}
	lines := bufio.NewScanner(out)
	for lines.Buffer(nil, 1<<20); lines.Scan() && len(r.born) > 0; {
		r.more()
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 2:
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return errors.New("git said what nobody understands")
			}
			id, at = fields[0], time.Unix(n, 0).UTC()
		case len(fields) > 4 && fields[0][0] == ':':
			c := r.born[fields[3]]
			if c == nil {
				continue
			}
			for _, i := range c.found {
				f := &r.result.Findings[i]
				f.Path = inventory.Printable("git:" + strings.TrimSuffix(r.repo, "/.git") + "@" + id + ":" + c.path)
				f.Modified = at
			}
			delete(r.born, fields[3])
		}
	}
	return lines.Err()
}

// CanReadHistory returns an error if there is no git.
func CanReadHistory() error {
	if _, err := exec.LookPath("git"); err != nil {
		return fmt.Errorf("reading history needs git: %w; install it, or leave --history out", err)
	}
	return nil
}
