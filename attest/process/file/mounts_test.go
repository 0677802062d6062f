package file

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountTable(t *testing.T) {
	t.Parallel()
	m, err := parseMount(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot rw,errors=continue`)
	must(t, err)
	if m.id != 36 || m.dev != unix.Mkdev(98, 0) || m.point != "/mnt 2" || m.fstype != "ext3" || m.source != `/dev/ro\ot` || m.options != "rw,errors=continue" {
		t.Errorf("read %+v", m)
	}
	for _, line := range []string{"", "36", "36 35 98:0 /mnt1 /mnt2 rw,noatime -", "x 35 98:0 / / rw - a b c", "36 35 98 / / rw - a b c", "36 35 98:0 / / - a b c"} {
		if m, err := parseMount(line); err == nil {
			t.Errorf("%q is taken as %+v", line, m)
		}
	}
	table := newMountTable("")
	table.mounts = []*mount{
		{id: 1, dev: 1, point: "/", fstype: "ext4"},
		{id: 2, dev: 2, point: "/home", fstype: "ext4"},
		{id: 3, dev: 3, point: "/home/user/mnt", fstype: "fuse.sshfs"},
		{id: 4, dev: 4, point: "/o", fstype: "overlay", options: "rw,lowerdir=/home/user/mnt/x:/usr,upperdir=/var"},
		{id: 5, dev: 5, point: "/c", fstype: "overlay", options: "rw,lowerdir=/d"},
		{id: 6, dev: 6, point: "/d", fstype: "overlay", options: "rw,lowerdir=/c"},
	}
	for path, want := range map[string]uint64{"/": 1, "/homes": 1, "/home": 2, "/home/user/mntx": 2, "/home/user/mnt/a": 3} {
		if got := table.over(path).id; got != want {
			t.Errorf("%s lies in mount %d, want %d", path, got, want)
		}
	}
	for _, tt := range []struct {
		m   *mount
		why string
	}{
		{&mount{dev: 9, fstype: "fuse.sshfs"}, "FUSE"},
		{&mount{dev: 9, fstype: "fuseblk"}, "FUSE"},
		{&mount{dev: 9, fstype: "overlay", options: "rw"}, "does not tell the layers"},
		{&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir=l/A:l/B"}, "does not tell where"},
		{&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir=/home/user/mnt/x:/usr"}, "FUSE"},
		{&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir+=/usr,lowerdir+=/o/below"}, "FUSE"},
		{&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir=/usr,upperdir=/tmp"}, "users can write"},
		{&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir=/c"}, "a layer of itself"},
		{table.mounts[5], "a layer of itself"},
		{&mount{dev: 9, fstype: "ext4", source: "/dev/loop99999"}, "not known which file"},
	} {
		if err := table.judge(tt.m); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%+v: got error %v, want one that says %q", tt.m.options, err, tt.why)
		}
	}
	if err := table.judge(&mount{dev: 9, fstype: "overlay", options: "rw,lowerdir=/usr:/etc"}); err != nil {
		t.Errorf("an overlay of root's: %v", err)
	}
	// An image's root is an overlay whose layers nobody sees any more, or that
	// seem to lie on itself.
	table.mounts[0] = &mount{id: 1, dev: 1, point: "/", fstype: "overlay", options: "rw,lowerdir=/run/image,upperdir=/tmp/upper"}
	if err := table.judge(table.mounts[0]); err != nil {
		t.Errorf("the overlay that PID 1 runs from: %v", err)
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,lowerdir=/a:/b`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := parseMount(line); err == nil && m.fstype == "overlay" {
			layersOf(m.options)
		}
	})
}
