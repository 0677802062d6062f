package file

import (
	"encoding/hex"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Verity returns the fs-verity digest of the file as algorithm:digest, "" where it
// has none.
func (f Pinned) Verity() (string, error) {
	if !f.ID.verity {
		return "", nil
	}
	fd, err := f.open()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := checkFile(f.ID, fd); err != nil {
		return "", err
	}
	return verity(fd)
}

// verity returns the fs-verity digest of a file that has one. The kernel
// checks what it reads of such a file against it, so that it costs no hashing.
func verity(fd int) (string, error) {
	const (
		sha256Algorithm = 1 // FS_VERITY_HASH_ALG_SHA256
		sha512Algorithm = 2
	)
	arg := struct {
		header unix.FsverityDigest
		digest [64]byte
	}{header: unix.FsverityDigest{Size: 64}}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_MEASURE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return "", errno
	}
	names := map[uint16]string{sha256Algorithm: "sha256", sha512Algorithm: "sha512"}
	name, ok := names[arg.header.Algorithm]
	if !ok || int(arg.header.Size) > len(arg.digest) {
		return "", fmt.Errorf("fs-verity digest of unknown algorithm %d", arg.header.Algorithm)
	}
	return name + ":" + hex.EncodeToString(arg.digest[:arg.header.Size]), nil
}
