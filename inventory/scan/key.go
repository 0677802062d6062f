package scan

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vouchd/vouchd/secret"
)

// A Key makes fingerprints, which compare only where it is the same. Whoever has it can
// try guesses of a weak password against them; nobody else learns anything from one.
type Key struct{ bytes secret.Bytes }

const keyLen = 32

// ReadKey reads the key in a file, which it makes if there is none.
func ReadKey(path string) (Key, error) {
	k, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Key{}, err
	}
	fresh := make([]byte, keyLen)
	rand.Read(fresh) // never fails
	if err := writeKey(path, fresh); err != nil && !errors.Is(err, fs.ErrExist) {
		return Key{}, err
	}
	return readKey(path) // which another run may have made
}

// writeKey has the file appear with all of the key in it, or not at all.
func writeKey(path string, key []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".inventory-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

func readKey(path string) (Key, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Key{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Key{}, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return Key{}, fmt.Errorf("%s: the key of fingerprints must be a file of the user who runs this, with mode 0600; remove it to have a new one made", path)
	}
	key, err := io.ReadAll(io.LimitReader(f, keyLen+1))
	if err != nil {
		return Key{}, err
	}
	if len(key) != keyLen {
		return Key{}, fmt.Errorf("%s has not the %d bytes of a key of fingerprints; remove it to have a new one made", path, keyLen)
	}
	return Key{secret.Of(key)}, nil
}

// print is the fingerprint of a value.
func (k Key) print(value secret.Bytes) string {
	mac := hmac.New(sha256.New, k.bytes.Reveal())
	mac.Write([]byte("vouch inventory 1\x00"))
	mac.Write(bytes.TrimSpace(value.Reveal()))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}
