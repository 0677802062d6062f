package deliver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

// A Directory keeps X509-SVIDs in its files. Its path is the place's.
type Directory struct {
	Place
	files map[string]os.FileInfo // by path, as last written; nil before that
}

// An X509Source sends this process's X509-SVIDs, and the next ones.
type X509Source interface {
	WatchX509Context(context.Context, spiffe.X509ContextWatcher) error
}

// Keep follows X509-SVIDs until ctx ends or the process that reads them exits.
func (k *Directory) Keep(ctx context.Context, source X509Source) error {
	if err := os.MkdirAll(k.Path, 0o700); err != nil {
		return err
	}
	if err := checkDirectory(k.Path); err != nil {
		return err
	}
	if err := k.prepareSignal(); err != nil {
		return err
	}
	defer k.close()
	following, stop := untilGone(ctx, &k.Place)
	defer stop()
	w := &svidWatcher{keeper: k, ctx: following, stop: stop}
	err := source.WatchX509Context(following, w)
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
	keeper *Directory
	ctx    context.Context // of the watch
	stop   context.CancelFunc
	err    error // that ended it
}

// OnX509ContextUpdate replaces the files.
func (w *svidWatcher) OnX509ContextUpdate(got *spiffe.X509Context) {
	k := w.keeper
	first := k.files == nil
	if err := k.replace(got); err != nil {
		w.end(err)
		return
	}
	if first {
		if err := k.Ready(); err != nil {
			w.end(err)
			return
		}
	}
	// The first time too: the reader may have what an earlier run had written.
	if err := k.tell(w.ctx); err != nil {
		fmt.Fprintf(os.Stderr, "vouch: %v\n", err) // the files are fresh nonetheless
	}
}

// OnX509ContextWatchError reports what is wrong. The client retries, unless this
// process has lost its identity, or has written no file yet.
func (w *svidWatcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() != nil {
		return
	}
	if w.keeper.files == nil || !cli.MayTryAgain(err) {
		w.end(fmt.Errorf("fetching X509-SVIDs: %w", err))
		return
	}
	fmt.Fprintf(os.Stderr, "vouch: following X509-SVIDs: %v; trying again\n", cli.Words(err))
}

func (w *svidWatcher) end(err error) {
	w.err = err
	w.stop()
}

func (k *Directory) close() {
	if k.pinned != nil {
		k.pinned.Close()
	}
	k.remove(nil)
}

// replace writes the files of all SVIDs, and removes those of SVIDs that are gone.
func (k *Directory) replace(got *spiffe.X509Context) error {
	var files []string
	for i, svid := range got.SVIDs {
		of, err := WriteSVID(k.Path, i, svid, got.Bundles)
		if err != nil {
			return err
		}
		files = append(files, of...)
	}
	foreign, err := WriteForeign(k.Path, got)
	if err != nil {
		return err
	}
	files = append(files, foreign...)
	k.remove(files)
	k.files = make(map[string]os.FileInfo)
	for _, path := range files {
		var err error
		if k.files[path], err = os.Lstat(path); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the files that were written, except those to keep and those that
// someone else has replaced since.
func (k *Directory) remove(keep []string) {
	for path, wrote := range k.files {
		if slices.Contains(keep, path) {
			continue
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, wrote) {
			os.Remove(path)
		}
	}
}

// WriteSVID writes an SVID, its bundle and its key into a directory, and returns
// the files. The key comes last: once it exists, so do the others.
func WriteSVID(dir string, i int, svid *x509svid.SVID, bundles x509bundle.Source) ([]string, error) {
	bundle, err := bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	certs, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var files []string
	for _, file := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{fmt.Sprintf("bundle.%d.pem", i), cli.PEM(bundle.X509Authorities()), 0o644},
		{fmt.Sprintf("svid.%d.pem", i), certs, 0o644},
		{fmt.Sprintf("svid.%d.key", i), key, 0o600},
	} {
		path := filepath.Join(dir, file.name)
		if _, err := state.ReplaceFile(path, file.data, state.Mode(file.mode)); err != nil {
			return nil, fmt.Errorf("writing %s: %w", path, err)
		}
		files = append(files, path)
	}
	return files, nil
}

// WriteForeign writes the bundles of other trust domains, each into a file of its own:
// roots of two in one file could pass for each other.
func WriteForeign(dir string, got *spiffe.X509Context) (files []string, err error) {
	for _, b := range got.Bundles.Bundles() {
		td := b.TrustDomain()
		if slices.ContainsFunc(got.SVIDs, func(s *x509svid.SVID) bool { return s.ID.TrustDomain() == td }) {
			continue
		}
		path := filepath.Join(dir, "federated."+td.Name()+".pem")
		if _, err := state.ReplaceFile(path, cli.PEM(b.X509Authorities()), state.Mode(0o644)); err != nil {
			return nil, fmt.Errorf("writing %s: %w", path, err)
		}
		files = append(files, path)
	}
	return files, nil
}
