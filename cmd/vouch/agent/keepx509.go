package agent

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A svidKeeper keeps X509-SVIDs in the files of a directory, whose path is the
// place's.
type svidKeeper struct {
	place
	files map[string]os.FileInfo // by path, as they were written last; nil before the first time
}

func (k *svidKeeper) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.path, "write", "", "write PEM files into this `directory`")
	f.BoolVar(&k.follow, "follow", false, "go on, replace the files as there are next ones, and remove them at the end")
	f.StringVar(&k.signalName, "signal", "", "send this `signal`, such as HUP, after files have taken the place of others; with --pid")
	f.IntVar(&k.pid, "pid", 0, "the `process` that gets the signal; --follow ends when it does")
	f.StringVar(&k.command, "exec", "", "run this `command` with sh, for a minute at most, after files have taken the place of others")
	cmd.MarkFlagDirname("write")
}

// check refuses flags that mean nothing without others.
func (k *svidKeeper) check() error {
	switch {
	case k.follow && k.path == "":
		return cli.Usagef("follow into which directory? name it with --write")
	case !k.follow && (k.signalName != "" || k.pid != 0 || k.command != ""):
		return cli.Usagef("--signal, --pid and --exec go with --follow")
	}
	return nil
}

// keepX509 follows this process's X509-SVIDs until ctx ends or the process that
// reads them does.
func (f *fetcher) keepX509(ctx context.Context, k *svidKeeper) error {
	if err := os.MkdirAll(k.path, 0o700); err != nil {
		return err
	}
	if err := checkDirectory(k.path); err != nil {
		return err
	}
	if err := k.prepareSignal(); err != nil {
		return err
	}
	defer k.close()
	client, _, done, err := f.client(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer done()
	following, stop := untilGone(ctx, &k.place)
	defer stop()
	w := &svidWatcher{keeper: k, fetcher: f, ctx: following, stop: stop}
	err = client.WatchX509Context(following, w)
	switch {
	case w.err != nil:
		return w.err
	case following.Err() != nil:
		return nil
	}
	return fmt.Errorf("following X509-SVIDs: %w", err)
}

// A svidWatcher puts what the daemon sends into the files. Its methods are called
// one at a time.
type svidWatcher struct {
	keeper  *svidKeeper
	fetcher *fetcher
	ctx     context.Context // of the watch
	stop    context.CancelFunc
	err     error // that ended it
}

// OnX509ContextUpdate replaces the files.
func (w *svidWatcher) OnX509ContextUpdate(got *spiffe.X509Context) {
	k := w.keeper
	first := k.files == nil
	if err := k.replace(w.fetcher, got); err != nil {
		w.end(err)
		return
	}
	if first {
		if err := k.ready(); err != nil {
			w.end(err)
		}
		return
	}
	if err := k.tell(w.ctx); err != nil {
		fmt.Fprintf(os.Stderr, "vouch: %v\n", err) // the files are fresh all the same
	}
}

// OnX509ContextWatchError says what is wrong. The client tries again, unless this
// process has no identity any more, or never had a file.
func (w *svidWatcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() != nil {
		return
	}
	if w.keeper.files == nil || !cli.MayTryAgain(err) {
		w.end(fmt.Errorf("fetching X509-SVIDs: %w", err))
		return
	}
	fmt.Fprintf(os.Stderr, "vouch: following X509-SVIDs: %v; trying again\n", err)
}

func (w *svidWatcher) end(err error) {
	w.err = err
	w.stop()
}

func (k *svidKeeper) close() {
	if k.pinned != nil {
		k.pinned.Close()
	}
	k.remove(nil)
}

// replace writes the files of all SVIDs, and removes those of SVIDs that there
// are no more.
func (k *svidKeeper) replace(f *fetcher, got *spiffe.X509Context) error {
	views, err := f.x509Views(got, k.path)
	if err != nil {
		return err
	}
	var files []string
	for _, v := range views {
		files = append(files, v.Files...)
	}
	k.remove(files)
	k.files = make(map[string]os.FileInfo)
	for _, path := range files {
		if k.files[path], err = os.Lstat(path); err != nil {
			return err
		}
	}
	return nil
}

// remove removes what was written but for the files to keep, and what somebody
// else has put in its place.
func (k *svidKeeper) remove(keep []string) {
	for path, wrote := range k.files {
		if slices.Contains(keep, path) {
			continue
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, wrote) {
			os.Remove(path)
		}
	}
}
