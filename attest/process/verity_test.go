package process

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestProgramWithVerity runs a program from a file that has fs-verity, on an ext4
// made for it. Few kernels of build machines have that: make vm-test runs this,
// too, with Debian's.
func TestProgramWithVerity(t *testing.T) {
	t.Parallel()
	asRoot(t)
	path := install(t, program(t, "sleep"), filepath.Join(verityDir(t), "program"), "")
	want := verityDigest(t, path)
	enableVerity(t, path)
	child := run(t, nil, path, "600")
	waitForProgram(t, child, path)
	at := attestPID(t, NewAttester(Options{}), child.Process.Pid)
	wantOnly(t, at.Selectors, "unix:fsverity:", "sha256:"+want)
	wantOnly(t, at.Selectors, "unix:sha256:", sha256Of(t, path))
	if len(at.Gaps) != 0 {
		t.Errorf("gaps: %v", at.Gaps)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("the file can be written to")
	}
}

// verityDir returns a directory on a file system that has fs-verity.
func verityDir(t *testing.T) string {
	t.Helper()
	dir := rootsTempDir(t) // of what users can write to nothing is said
	image, mount := dir+"/image", dir+"/mnt"
	must(t, os.Mkdir(mount, 0o755))
	for _, command := range [][]string{
		{"truncate", "-s", "16M", image},
		{"mkfs.ext4", "-q", "-O", "verity", "-b", "4096", image},
		{"mount", "-o", "loop", image, mount},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no file system with fs-verity here: %v: %s", command, out)
		}
	}
	t.Cleanup(func() {
		eventually(t, "nothing runs from there any more", func() bool { return unix.Unmount(mount, 0) == nil })
	})
	return mount
}

func enableVerity(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: 1, Block_size: 4096}
	var errno unix.Errno
	eventually(t, "nobody has the file open for writing", func() bool { // another test may have forked
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
		return errno != unix.ETXTBSY
	})
	if errors.Is(errno, unix.EOPNOTSUPP) || errors.Is(errno, unix.ENOTTY) {
		t.Skip("the kernel has no fs-verity here")
	}
	if errno != 0 {
		t.Fatal(errno)
	}
}

// verityDigest computes what the kernel should say of the file, after the kernel's
// fsverity.rst: the SHA-256 of a descriptor that holds the root of a Merkle tree
// over blocks of 4096 bytes.
func verityDigest(t *testing.T, path string) string {
	t.Helper()
	level, err := os.ReadFile(path)
	must(t, err)
	size := len(level)
	for {
		var next []byte
		for len(level) > 0 {
			block := make([]byte, 4096)
			n := copy(block, level)
			level = level[n:]
			sum := sha256.Sum256(block)
			next = append(next, sum[:]...)
		}
		if level = next; len(level) == sha256.Size {
			break
		}
	}
	descriptor := make([]byte, 256)
	descriptor[0], descriptor[1], descriptor[2] = 1, 1, 12 // version, SHA-256, blocks of 1<<12
	binary.LittleEndian.PutUint64(descriptor[8:], uint64(size))
	copy(descriptor[16:], level)
	sum := sha256.Sum256(descriptor)
	return hex.EncodeToString(sum[:])
}
