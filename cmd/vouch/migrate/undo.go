package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// remindAfter is when an administrator is reminded that an undo is still kept.
const remindAfter = 30 * 24 * time.Hour

// A journal is what undoes one migration of a file. It holds the values.
type journal struct {
	Path  string `json:"path"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Mode  uint32 `json:"mode"`
	Hunks []hunk `json:"hunks"`
}

// A hunk is what stood at a place, and what stands there now: a text that is nowhere else
// in the file.
type hunk struct {
	Old []byte `json:"old"`
	New []byte `json:"new"`
}

// hunksOf returns the hunks of edits, each with as much around it as it needs to be the
// only one of its kind in the file as it will be.
func hunksOf(before, after []byte, edits []edit) []hunk {
	var list []hunk
	moved := 0 // how far the file after an edit has moved
	low := 0   // of before: where a hunk may begin
	for i := 0; i < len(edits); {
		from, to := edits[i].start, edits[i].end
		next := i + 1
		delta := len(edits[i].text) - (to - from)
		for grow := 0; ; grow++ {
			for next < len(edits) && edits[next].start <= to {
				to = max(to, edits[next].end)
				delta += len(edits[next].text) - (edits[next].end - edits[next].start)
				next++
			}
			text := after[from+moved : to+moved+delta]
			if len(text) > 0 && once(after, text) || from == low && to == len(before) {
				break
			}
			step := 1 << min(grow/4, 12)
			to = min(len(before), to+step)
			from = max(low, from-step)
		}
		list = append(list, hunk{before[from:to], after[from+moved : to+moved+delta]})
		moved += delta
		low, i = to, next
	}
	return list
}

func once(data, text []byte) bool {
	i := bytes.Index(data, text)
	return i >= 0 && bytes.LastIndex(data, text) == i
}

// stem begins the names under which what undoes migrations of a file is sealed: its path
// by its digest, since names have no slashes. What follows in a name is for people.
func stem(path string) string {
	sum := sha256.Sum256([]byte(path))
	return sealed.UndoPrefix + hex.EncodeToString(sum[:8])
}

const mostOfPath = 80 // bytes, in a name

func undoName(path string, n int) string {
	words := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, path), "-")
	return fmt.Sprintf("%s.%d-%s", stem(path), n, words[max(0, len(words)-mostOfPath):])
}

// undosOf returns the names of what undoes migrations of a file, the first one first.
func undosOf(ctx context.Context, client *cli.Admin, path string) (names []string, err error) {
	list, err := client.Secrets.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if strings.HasPrefix(s.Name, stem(path)+".") {
			names = append(names, s.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return numberOf(a) - numberOf(b) })
	return names, nil
}

func numberOf(name string) int {
	_, rest, _ := strings.Cut(name, ".")
	digits, _, _ := strings.Cut(rest, "-")
	n, _ := strconv.Atoi(digits) // 0, which no name has
	return n
}

// keepUndo has what undoes the change sealed, before the change is made.
func keepUndo(ctx context.Context, p *plan, client *cli.Admin, after []byte) error {
	j := journal{Path: p.file.Path, UID: p.file.Stat.Uid, GID: p.file.Stat.Gid, Mode: p.file.Stat.Mode, Hunks: hunksOf(p.file.Data, after, p.edits)}
	return keepJournal(ctx, client, j)
}

func keepJournal(ctx context.Context, client *cli.Admin, j journal) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	value := secret.Of(text)
	defer value.Wipe()
	names, err := undosOf(ctx, client, j.Path)
	if err != nil {
		return err
	}
	next := 1
	if len(names) > 0 {
		last := names[len(names)-1]
		next = numberOf(last) + 1
		// A run that was cut short has left the same.
		if _, err := client.Secrets.Seal(ctx, last, value, view.SecretOptions{Same: true}); err == nil {
			return nil
		}
	}
	if _, err = client.Secrets.Seal(ctx, undoName(j.Path, next), value, view.SecretOptions{Same: true, RotateAfter: remindAfter}); err != nil {
		return fmt.Errorf("keeping what undoes this: %w", err)
	}
	return nil
}

// What an undo can find. The message says what to do.
var (
	errNoUndo  = errors.New("nothing is kept that would undo a migration of it; see vouch migrate undo --list")
	errChanged = errors.New("what the migration wrote has been changed since, so that nobody knows where the values belong; put it back, or write the file anew")
)

// undone returns the data as it was before the change, or as it is if the change was never
// made.
func (j *journal) undone(data []byte) ([]byte, error) {
	var edits []edit
	for _, h := range j.Hunks {
		at := bytes.Index(data, h.New)
		before := bytes.Contains(h.Old, h.New) && bytes.Contains(data, h.Old) // of text that was taken out
		if before || !once(data, h.New) || len(h.New) == 0 && len(data) > 0 {
			return j.neverDone(data)
		}
		edits = append(edits, edit{at, at + len(h.New), string(h.Old)})
	}
	return splice(data, edits)
}

// neverDone returns the data if all that the change would have replaced is there.
func (j *journal) neverDone(data []byte) ([]byte, error) {
	for _, h := range j.Hunks {
		if !bytes.Contains(data, h.Old) {
			return nil, errChanged
		}
	}
	return bytes.Clone(data), nil
}

// undo is the request for one.
type undo struct {
	*cli.Options
	list, forget bool
}

// An undoView says what was undone, or could be.
type undoView struct {
	File      string    `json:"file,omitempty"`
	Undone    bool      `json:"undone,omitempty"`
	Forgotten []string  `json:"forgotten,omitempty"`
	Kept      []keptFor `json:"kept,omitempty"`
}

type keptFor struct {
	Name  string    `json:"name"`
	Since time.Time `json:"since"`
}

func newUndo(o *cli.Options) *cobra.Command {
	u := undo{Options: o}
	cmd := &cobra.Command{
		Use:   "undo {FILE | --list | --forget FILE}",
		Short: "Put the values back into a migrated file",
		Long: `Undo puts the values back in their places in a file that was migrated, with its owner
and mode. The rest of the file stays as it is now. If what the migration wrote has been
changed since, undo changes nothing and says so.

What was replaced is sealed to this machine until the migration is undone or --forget
removes it. The log has a record of each undo. Sealed secrets and definitions stay:
remove them with vouch secret remove once nothing uses them.`,
		Example: `  vouch migrate undo .env
  vouch migrate undo --list
  vouch migrate undo --forget /opt/research/.env`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case u.list && len(args) == 0 && !u.forget:
				return u.printList(cmd)
			case u.list || len(args) == 0:
				return cli.Usagef("FILE or --list is required, and not both")
			case u.forget:
				return u.forgetFile(cmd, args[0])
			}
			return u.undo(cmd, args[0])
		},
	}
	cmd.Flags().BoolVar(&u.list, "list", false, "list what can be undone")
	cmd.Flags().BoolVar(&u.forget, "forget", false, "remove what would undo the migrations of FILE")
	return cmd
}

func (u *undo) printList(cmd *cobra.Command) error {
	client, err := u.Admin()
	if err != nil {
		return err
	}
	list, err := client.Secrets.List(cmd.Context())
	if err != nil {
		return err
	}
	v := undoView{Kept: []keptFor{}}
	for _, s := range list {
		if strings.HasPrefix(s.Name, sealed.UndoPrefix) {
			v.Kept = append(v.Kept, keptFor{s.Name, s.Sealed})
		}
	}
	return u.Print(cmd, v.Kept, func(w io.Writer) {
		for _, k := range v.Kept {
			fmt.Fprintf(w, "%s\tsince %s\n", k.Name, cli.Time(k.Since))
		}
	})
}

func (u *undo) forgetFile(cmd *cobra.Command, path string) error {
	client, err := u.Admin()
	if err != nil {
		return err
	}
	names := []string{path}
	if !strings.HasPrefix(path, sealed.UndoPrefix) || strings.Contains(path, "/") {
		f, err := held.Find(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if names, err = undosOf(cmd.Context(), client, f.Path); err == nil && len(names) == 0 {
			err = fmt.Errorf("%s: %w", f.Path, errNoUndo)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := client.Secrets.Remove(cmd.Context(), name); err != nil {
			return err
		}
	}
	return u.Print(cmd, undoView{File: path, Forgotten: names}, func(w io.Writer) {
		for _, name := range names {
			fmt.Fprintf(w, "removed %s; nothing undoes that migration any more\n", name)
		}
	})
}

func (u *undo) undo(cmd *cobra.Command, path string) error {
	client, err := u.Admin()
	if err != nil {
		return err
	}
	f, err := held.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Lock(); err != nil {
		return err
	}
	names, err := undosOf(cmd.Context(), client, f.Path)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("%s: %w", f.Path, errNoUndo)
	}
	if err != nil {
		return err
	}
	v := undoView{File: f.Path, Undone: true, Forgotten: names}
	data := bytes.Clone(f.Data)
	defer func() { clear(data) }()
	for _, name := range slices.Backward(names) {
		j, err := journalOf(cmd.Context(), client, name)
		if err != nil {
			return err
		}
		if err := j.fits(f); err != nil {
			return err
		}
		before, err := j.undone(data)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		clear(data)
		data = before
		f.Stat.Mode = j.Mode // it may be open to more by now
	}
	if !bytes.Equal(data, f.Data) {
		if err := f.Replace(data); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := client.Secrets.Remove(cmd.Context(), name); err != nil {
			return fmt.Errorf("%s has its values again; %w; run this again", f.Path, err)
		}
	}
	return u.Print(cmd, v, func(w io.Writer) {
		fmt.Fprintf(w, "%s is as it was before it was migrated. Its sealed secrets and their definitions stay; to remove one: vouch secret remove NAME\n", f.Path)
	})
}

func journalOf(ctx context.Context, client *cli.Admin, name string) (journal, error) {
	var j journal
	value, err := client.Secrets.Undo(ctx, name)
	if err != nil {
		return j, err
	}
	defer value.Wipe()
	if json.Unmarshal(value.Reveal(), &j) != nil {
		return j, fmt.Errorf("%s does not hold what undoes a migration", name)
	}
	return j, nil
}

// fits returns an error unless the values belong in the file: it is the one of then, and
// the same user's.
func (j *journal) fits(f *held.File) error {
	switch {
	case j.Path != f.Path:
		return fmt.Errorf("what is kept is of another file, %s", j.Path)
	case j.UID != f.Stat.Uid || j.GID != f.Stat.Gid:
		return fmt.Errorf("%s belongs to user %d and group %d now, and did to %d and %d; give it back with chown first", f.Path, f.Stat.Uid, f.Stat.Gid, j.UID, j.GID)
	}
	return nil
}
