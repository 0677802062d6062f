package credential

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/vouchd/vouchd/secret"
)

// maxSecretFile bounds a secret in a file, in bytes.
const maxSecretFile = 64 << 10

// ReadSecret reads a secret that an administrator keeps in a file, such as the
// password by which a broker logs in. The file must be regular and readable by
// its owner alone, who must be root or the daemon's user. One line end after the
// secret is not part of it.
func ReadSecret(path string) (secret.Bytes, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("reading secret: %w", err)
	}
	defer f.Close()
	if err := keptSecret(f); err != nil {
		return secret.Bytes{}, fmt.Errorf("reading secret %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("reading secret: %w", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 || len(b) > maxSecretFile {
		return secret.Bytes{}, fmt.Errorf("reading secret %s: it has %d bytes; want 1 to %d", path, len(b), maxSecretFile)
	}
	return secret.Of(b), nil
}

func keptSecret(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d; run: chown root %s", st.Uid, f.Name())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("mode %04o lets others read it; run: chmod 600 %s", info.Mode().Perm(), f.Name())
	}
	return nil
}
