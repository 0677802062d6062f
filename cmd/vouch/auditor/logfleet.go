package auditor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// maxLogs bounds how many logs are found in one folder.
const maxLogs = 100_000

// logsIn returns the logs that are named: each by itself, or by a folder of
// directories and archives.
func logsIn(names []string) (all []string, err error) {
	for _, name := range names {
		found, err := logsBelow(name)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func logsBelow(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, nil // what is wrong with it, opening it says
	}
	dirs, err := reader.FindLogs(os.DirFS(name), maxLogs)
	if err != nil {
		return nil, fmt.Errorf("looking for logs in %s: %w", name, err)
	}
	if slices.Equal(dirs, []string{"."}) {
		return []string{name}, nil
	}
	files, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, dir := range dirs {
		all = append(all, filepath.Join(name, filepath.FromSlash(dir)))
	}
	for _, f := range files {
		path := filepath.Join(name, f.Name())
		if !f.IsDir() && (isArchive(f.Name()) || isLinkedDir(f, path)) {
			all = append(all, path)
		}
	}
	if len(all) == 0 {
		return []string{name}, nil
	}
	slices.Sort(all)
	return all, nil
}

// isLinkedDir tells whether a name in a folder of logs links to a directory, which is
// then meant to be one.
func isLinkedDir(f fs.DirEntry, path string) bool {
	if f.Type() != fs.ModeSymlink {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// isArchive tells whether a file in a folder of logs is meant to be one. A compressed
// one is: that it can't be read is to be said, not to be passed over.
func isArchive(name string) bool {
	return strings.Contains(name, ".tar") || strings.HasSuffix(name, ".tgz")
}

// A fleet is the verification of many logs.
type fleet struct {
	OK   bool        `json:"ok"`
	Logs []*fleetLog `json:"logs"` // the worst first
}

// A fleetLog is what is found of one of them.
type fleetLog struct {
	Log      string `json:"log"`
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"`         // why it could not be read
	Evidence string `json:"evidence_file,omitempty"` // of --node, which has its endorsement key
	*verifyView

	warnings int
}

// verifyFleet verifies logs, as many at once as there are processors.
func verifyFleet(cmd *cobra.Command, o *cli.Options, names []string, ask reader.VerifyOptions, known []*knownMachine) error {
	f := fleet{OK: true, Logs: make([]*fleetLog, len(names))}
	p, stop := startProgress(cmd)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, name := range names {
		group.Go(func() error {
			f.Logs[i] = verifyOne(cmd.Context(), name, ask, known, p)
			return cmd.Context().Err()
		})
	}
	err := group.Wait()
	stop()
	if err != nil {
		return err
	}
	for _, l := range f.Logs {
		f.OK = f.OK && l.OK
	}
	slices.SortStableFunc(f.Logs, func(a, b *fleetLog) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.warnings, a.warnings), cmp.Compare(a.Log, b.Log))
	})
	if err := o.Print(cmd, f, func(w io.Writer) { f.writeText(w) }); err != nil {
		return err
	}
	if !f.OK {
		return cli.ErrSaid
	}
	return nil
}

// verifyOne verifies one log of a fleet. What is wrong with it does not keep the
// others from being verified.
func verifyOne(ctx context.Context, name string, ask reader.VerifyOptions, known []*knownMachine, p *progress) *fleetLog {
	l := &fleetLog{Log: name}
	tpm := &tpmVerifier{known: known, any: true}
	ask.TPM = tpm
	report, err := verifyNamed(ctx, name, ask, p)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	l.OK = report.OK
	l.verifyView = &verifyView{Report: report, MachineKnown: tpm.is != nil && report.OK}
	if tpm.is != nil {
		l.Evidence = tpm.is.file
	}
	for _, f := range report.Findings {
		if f.Severity == reader.Warning {
			l.warnings++
		}
	}
	return l
}

func verifyNamed(ctx context.Context, name string, ask reader.VerifyOptions, p *progress) (*reader.Report, error) {
	fsys, done, err := openLog(name)
	if err != nil {
		return nil, err
	}
	defer done()
	return reader.Verify(ctx, p.of(fsys), ask)
}

// The ranks of a log in a fleet, the worst first.
const (
	failed = iota
	unread
	warned
	holds
)

func (l *fleetLog) rank() int {
	switch {
	case l.Error != "":
		return unread
	case !l.Report.OK:
		return failed
	case l.warnings > 0:
		return warned
	}
	return holds
}

// writeText writes a line for each log.
func (f *fleet) writeText(w io.Writer) {
	words := []string{"FAILED", "UNREAD", "WARNS", "HOLDS"}
	var n [holds + 1]int
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range f.Logs {
		n[l.rank()]++
		says := l.Error
		if l.verifyView != nil {
			says = l.Verdict
		}
		machine := "machine not known to you"
		if l.Evidence != "" {
			machine = "machine of " + l.Evidence
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", words[l.rank()], l.Log, machine, says)
	}
	t.Flush()
	fmt.Fprintf(w, "\n%s: %d failed, %d could not be read, %d with warnings, %d without\n",
		cli.Count(len(f.Logs), "log", "logs"), n[failed], n[unread], n[warned], n[holds])
}
