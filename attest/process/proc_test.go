package process

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const someStatus = "Name:\tx\\nUid:\t0\nState:\tS (sleeping)\nTracerPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapPrm:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n"

func TestParseStatus(t *testing.T) {
	t.Parallel()
	got, err := parseStatus([]byte(someStatus))
	want := status{uid: 2, uids: [4]uint32{1, 2, 3, 4}, gid: 6, gids: [4]uint32{5, 6, 7, 8}, permitted: 0x400, groups: []uint32{9, 10}, noNewPrivs: true, seccomp: true, tracer: 7}
	if err != nil || !got.equal(want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, tt := range []struct{ name, old, new string }{
		{"no user", "Uid:\t1\t2\t3\t4\n", ""},
		{"user listed twice", "Groups:", "Uid:\t0\t0\t0\t0\nGroups:"},
		{"no groups", "Groups:\t9 10 \n", ""},
		{"no capabilities", "CapPrm:\t0000000000000400\n", ""},
		{"capabilities that are no number", "CapPrm:\t0", "CapPrm:\tx"},
		{"an ID missing", "\t4\n", "\n"},
		{"negative ID", "\t2\t", "\t-2\t"},
		{"ID too large", "\t2\t", "\t4294967296\t"},
		{"line without a colon", "Seccomp:", "Seccomp"},
		{"too many groups", "9 10", strings.Repeat("1 ", maxGroups+1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := strings.Replace(someStatus, tt.old, tt.new, 1)
			if in == someStatus {
				t.Fatal("nothing replaced")
			}
			if got, err := parseStatus([]byte(in)); err == nil {
				t.Errorf("got %+v, want an error", got)
			}
		})
	}
}

func statLine(comm string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "1 (%s) S", comm)
	for i := 4; i <= 52; i++ {
		fmt.Fprintf(&b, " %d", i)
	}
	return b.String() + "\n"
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	for _, comm := range []string{"sh", "", "a b", ") S 1 2 (", "x) S\n1 (y", ")"} {
		got, err := parseStat([]byte(statLine(comm)))
		if want := (stat{22, image{code: 26, data: 45, heap: 47, stack: 28}}); err != nil || got != want {
			t.Errorf("program %q: got %+v, %v; want %+v", comm, got, err, want)
		}
	}
	for _, in := range []string{"", "1 (x", "1 (x) S 1 2 3\n", strings.Replace(statLine("x"), " 22 ", " x ", 1)} {
		if got, err := parseStat([]byte(in)); err == nil {
			t.Errorf("%q: got %+v, want an error", in, got)
		}
	}
}

func TestReadIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, n := range []int{0, 1, 4095, 4096, 4097, maxFileLen - 1} {
		must(t, os.WriteFile(dir+"/"+strconv.Itoa(n), []byte(strings.Repeat("x", n)), 0o600))
	}
	must(t, os.WriteFile(dir+"/long", make([]byte, maxFileLen+1), 0o600))
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	var buf buffer
	for _, n := range []int{maxFileLen - 1, 0, 1, 4095, 4096, 4097} {
		b, err := procDir(f.Fd()).read(strconv.Itoa(n), &buf)
		if err != nil || len(b) != n || slices.ContainsFunc(b, func(c byte) bool { return c != 'x' }) {
			t.Errorf("file of %d bytes: read %d, %v", n, len(b), err)
		}
	}
	if b, err := procDir(f.Fd()).read("long", &buf); err == nil {
		t.Errorf("read %d bytes of a file that is too long", len(b))
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(someStatus))
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStatus(b)
		if err == nil && (len(s.groups) > maxGroups || !strings.Contains(string(b), "Uid:")) {
			t.Errorf("parsed %+v", s)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine(") S 1 (")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil {
			// What follows the last parenthesis decides, whatever comes before.
			tail := string(b[strings.LastIndexByte(string(b), ')'):])
			if again, err := parseStat([]byte("1 (x" + tail)); err != nil || again != s {
				t.Errorf("got %+v, then %+v, %v", s, again, err)
			}
		}
	})
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7f00-8000 r-xp 00000000 fe:00 12 /usr/bin/a b")
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := parseMapping(line); err == nil && !strings.HasSuffix(line, m.path) {
			t.Errorf("%q maps %q", line, m.path)
		}
	})
}
