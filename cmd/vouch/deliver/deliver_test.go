package deliver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func private(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deliver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "value")
}

func TestValueIsReplacedAndItsReaderTold(t *testing.T) {
	t.Parallel()
	path := private(t)
	p := &Place{Path: path, Mode: "0640", Command: "cat " + path + " >>" + path + ".told"}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, value := range []string{"one", "two", "three"} {
		if err := p.Put(t.Context(), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "three" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if told, err := os.ReadFile(path + ".told"); err != nil || string(told) != "twothree" {
		t.Errorf("the reader was told %q, %v", told, err)
	}
}

func TestFollowedFileIsRemovedBeforeItsValueEnds(t *testing.T) {
	t.Parallel()
	p := &Place{Path: private(t), Mode: "0600", Follow: true}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := false
	err := Values(ctx, p, func(ctx context.Context, put func([]byte) error) error {
		if err := put([]byte("secret")); err != nil {
			return err
		}
		cancel()
		return ctx.Err()
	}, func() {
		ended = true
		if _, err := os.Stat(p.Path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is there when its value ends: %v", err)
		}
	})
	if err != nil || !ended {
		t.Errorf("ended: %t, %v", ended, err)
	}
}

func TestReaderIsToldOfTheFirstValueAfterARestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "value")
	for _, value := range []string{"one", "two"} { // two runs, each of which removes its file
		p := &Place{Path: path, Mode: "0600", Follow: true, Command: "cat " + path + " >>" + path + ".told"}
		if err := p.Prepare(); err != nil {
			t.Fatal(err)
		}
		if err := p.Put(t.Context(), []byte(value)); err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	if told, err := os.ReadFile(path + ".told"); err != nil || string(told) != "onetwo" {
		t.Errorf("the reader was told %q, %v", told, err)
	}
}

func TestFileThatSomebodyElsePutThereStays(t *testing.T) {
	t.Parallel()
	p := &Place{Path: private(t), Mode: "0600", Follow: true}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := p.Put(t.Context(), []byte("ours")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.Path, p.Path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if got, err := os.ReadFile(p.Path); err != nil || string(got) != "theirs" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func TestAnErrorBeforeTheFirstValueIsReturned(t *testing.T) {
	t.Parallel()
	p := &Place{Path: private(t), Mode: "0600", Follow: true}
	refused := errors.New("refused")
	fetch := func(context.Context) ([]byte, time.Time, error) { return nil, time.Time{}, refused }
	if err := Token(t.Context(), p, fetch); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}

func TestPlacesThatOthersCouldChangeAreRefused(t *testing.T) {
	t.Parallel()
	path := private(t)
	for text, p := range map[string]*Place{
		"--mode":               {Path: path, Mode: "0666"},
		"--owner":              {Path: path, Mode: "0600", Owner: "nobody-of-that-name"},
		"--signal":             {Path: path, Mode: "0600", Signal: "HUP"},
		"want a signal's name": {Path: path, Mode: "0600", Signal: "LOUD", PID: 1},
	} {
		if err := p.Prepare(); !cli.IsUsage(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := (&Place{Path: path, Mode: "0600"}).Prepare(); err == nil || !strings.Contains(err.Error(), "lets others replace files there") {
		t.Errorf("a directory that others may write: %v", err)
	}
}
