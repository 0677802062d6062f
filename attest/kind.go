package attest

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Trust says who vouches for a fact.
type Trust int

// From weakest to strongest.
const (
	Weak            Trust = iota // the process's owner can arrange it
	ManagerEnforced              // systemd keeps it
	KernelEnforced               // the kernel keeps it
	TPMEnforced                  // the TPM keeps it
)

func (t Trust) String() string {
	return [...]string{"weak", "manager-enforced", "kernel-enforced", "TPM-enforced"}[t]
}

// A Stage says what it costs to find a fact out.
type Stage int

// From cheap to dear. A process is asked about only as far as an entry that it
// may still match wants it.
const (
	Seen  Stage = iota // the kernel's own word about the process
	Asked              // of systemd, of a security module, of namespaces
	Read               // from files, at the pace of the file systems they are on
)

// A Kind is one kind of selector.
type Kind struct {
	Prefix string // "unix:uid:"
	Trust  Trust
	Stage  Stage
	// Anchor says that only the kernel or PID 1 can arrange the fact, on root's instructions.
	// An entry needs an anchor; other selectors narrow it.
	Anchor bool
	Says   string // what a selector of this kind states, for documents and explanations

	check func(arg string) error
}

// Kinds lists every kind this version knows, by prefix.
func Kinds() []Kind { return slices.Clone(kinds) }

var kinds = []Kind{
	{"apparmor:profile:", KernelEnforced, Asked, false, "AppArmor profile enforced on the process", name},
	{"cgroup:path:", KernelEnforced, Seen, true, "control group of the process, from the hierarchy's root", absolutePath},
	{"cgroup:slice:", KernelEnforced, Seen, true, "innermost of the slices that path begins with", sliceName},
	{"container:id:", ManagerEnforced, Seen, true, "ID or name of the container, as given by a runtime that root started", containerID},
	{"container:runtime:", ManagerEnforced, Seen, true, "runtime of the container, by the control group it makes; unknown for a PID namespace outside such groups", oneOf("docker", "containerd", "podman", "cri-o", "nspawn", "unknown")},
	{"ima:sha256:", Weak, Read, false, "SHA-256 of the program, as the kernel measured it at this path (IMA)", sha256Hex},
	{"nnp:", KernelEnforced, Seen, false, "neither the process nor its children can gain privileges by exec", oneOf("true")},
	{"node:hostname:", Weak, Seen, false, "host name, as the machine reports it", hostname},
	{"ns:ipc:", KernelEnforced, Asked, false, "whether the IPC namespace is that of PID 1", oneOf("host", "private")},
	{"ns:mnt:", KernelEnforced, Asked, false, "whether the mount namespace is that of PID 1", oneOf("host", "private")},
	{"ns:net:", KernelEnforced, Asked, false, "whether the network namespace is that of PID 1", oneOf("host", "private")},
	{"ns:pid:", KernelEnforced, Asked, false, "whether the PID namespace is that of PID 1", oneOf("host", "private")},
	{"ns:user:", KernelEnforced, Asked, false, "whether the user namespace is that of PID 1", oneOf("host", "private")},
	{"parent:sha256:", Weak, Read, false, "SHA-256 of the program that the parent process is running now", sha256Hex},
	{"parent:systemd:id:", ManagerEnforced, Read, false, "system unit the parent process belongs to", unitName},
	{"script:path:", ManagerEnforced, Read, false, "path of the script the interpreter was started with", absolutePath},
	{"script:sha256:", ManagerEnforced, Read, false, "SHA-256 of that script, if unchanged since the process started", sha256Hex},
	{"script:tree_sha256:", ManagerEnforced, Read, false, "digest, as vouch hash prints it, of the script's directory or of the virtual environment", sha256Hex},
	{"seccomp:", KernelEnforced, Seen, false, "a seccomp filter is in force", oneOf("filter")},
	{"selinux:type:", KernelEnforced, Asked, true, "type in the SELinux context of the process", name},
	{"systemd:exec_sha256:", ManagerEnforced, Asked, true, "SHA-256 of a file named in the unit's ExecStart", sha256Hex},
	{"systemd:fragment_path:", ManagerEnforced, Asked, true, "path of the unit's file", absolutePath},
	{"systemd:fragment_sha256:", ManagerEnforced, Asked, true, "SHA-256 of the unit's file, as root wrote it before the process started", sha256Hex},
	{"systemd:id:", ManagerEnforced, Seen, true, "system unit the process belongs to", unitName},
	{"systemd:invocation_id:", ManagerEnforced, Asked, true, "this run of the unit", hexDigits(16)},
	{"systemd:main_process:", ManagerEnforced, Asked, true, "the unit's main process, as systemd started it, and none of its children", oneOf("true")},
	{"systemd:slice:", ManagerEnforced, Seen, true, "slice of that unit", sliceName},
	{"systemd:user_unit:", Weak, Seen, false, "unit of the user's own service manager; the user chose its name", unitName},
	{"tpm:ek:sha256:", TPMEnforced, Seen, false, "SHA-256 of the TPM's endorsement key", sha256Hex},
	{"tpm:pcr:", TPMEnforced, Seen, false, "value of one of the TPM's PCRs, SHA-256 bank: number:value", pcrValue},
	{"tpm:secureboot:", TPMEnforced, Seen, false, "whether the machine booted with Secure Boot", secureBoot},
	{"unix:fsverity:sha256:", Weak, Read, false, "fs-verity digest of the program's file, by SHA-256", sha256Hex},
	{"unix:fsverity:sha512:", Weak, Read, false, "fs-verity digest of the program's file, by SHA-512", hexDigits(64)},
	{"unix:gid:", KernelEnforced, Seen, true, "effective group ID", id},
	{"unix:group:", KernelEnforced, Seen, true, "name of the effective group", name},
	{"unix:path:", Weak, Read, false, "path at which the daemon finds the file that the process is running", absolutePath},
	{"unix:sha256:", Weak, Read, false, "SHA-256 of the running program's file, on a file system of the host", sha256Hex},
	{"unix:supplementary_gid:", KernelEnforced, Seen, true, "one of the supplementary group IDs", id},
	{"unix:supplementary_group:", KernelEnforced, Seen, true, "name of one of the supplementary groups", name},
	{"unix:uid:", KernelEnforced, Seen, true, "effective user ID", id},
	{"unix:user:", KernelEnforced, Seen, true, "name of the effective user", name},
}

// A KindSet is a set of kinds, of which there are fewer than 64.
type KindSet uint64

// KindsOf returns the kinds whose prefixes begin with one of the texts, such as
// "ns:" or "script:tree_sha256:".
func KindsOf(prefixes ...string) (set KindSet) {
	for i, k := range kinds {
		for _, p := range prefixes {
			if strings.HasPrefix(k.Prefix, p) {
				set |= 1 << i
			}
		}
	}
	return set
}

// Has reports whether any of the kinds is in the set.
func (s KindSet) Has(any KindSet) bool { return s&any != 0 }

// KindSet returns the set of the selector's kind alone.
func (s Selector) KindSet() KindSet {
	text := s.String()
	for i, k := range kinds {
		if strings.HasPrefix(text, k.Prefix) {
			return 1 << i
		}
	}
	return 0
}

// Stage returns what it costs to find the fact out.
func (s Selector) Stage() Stage {
	k, _, err := kindOf(s.String())
	if err != nil {
		return Read
	}
	return k.Stage
}

// Anchors reports whether the kernel or PID 1 alone can arrange the fact. Of
// some kinds there are values that any user can: what every login is in, what a
// user's own service manager makes, and the root of all.
func (s Selector) Anchors() bool {
	k, arg, err := kindOf(s.String())
	if err != nil || !k.Anchor {
		return false
	}
	switch k.Prefix {
	case "cgroup:path:":
		return strings.Trim(arg, "/") != "" && !strings.Contains(arg+"/", "/user.slice/") && !strings.Contains(arg, "/user@")
	case "cgroup:slice:", "systemd:slice:":
		return arg != "-.slice" && arg != "user.slice"
	case "container:runtime:":
		return arg != "unknown" // helpers with the set-user-ID bit make PID namespaces for anybody
	}
	return true
}

// unalteredByExec are the kinds of facts that are about no program, and about no context
// that running one changes.
var unalteredByExec = KindsOf("cgroup:", "container:", "node:", "ns:", "systemd:", "tpm:", "unix:gid:", "unix:group:", "unix:supplementary_", "unix:uid:", "unix:user:")

// OutlastsExec reports whether running another program leaves the fact as it is, unless
// that program has the set-user-ID or set-group-ID bit.
func (s Selector) OutlastsExec() bool { return unalteredByExec.Has(s.KindSet()) }

// kindOf splits s into its kind and the argument after the kind's prefix.
func kindOf(s string) (Kind, string, error) {
	for _, k := range kinds {
		if arg, ok := strings.CutPrefix(s, k.Prefix); ok {
			return k, arg, nil
		}
	}
	// Written without its first word, as "uid:1000" is?
	word, _, _ := strings.Cut(s, ":")
	for _, like := range []func(prefix string) bool{
		func(prefix string) bool { return prefix == "unix:"+word+":" },
		func(prefix string) bool { return strings.HasSuffix(prefix, ":"+word+":") },
	} {
		if i := slices.IndexFunc(kinds, func(k Kind) bool { return like(k.Prefix) }); i >= 0 {
			return Kind{}, "", fmt.Errorf("unknown selector %q; did you mean %s?", clip(s), kinds[i].Prefix)
		}
	}
	near := slices.MinFunc(kinds, func(a, b Kind) int {
		return cmp.Compare(distance(s, a.Prefix), distance(s, b.Prefix))
	})
	return Kind{}, "", fmt.Errorf("unknown selector %q; did you mean %s?", clip(s), near.Prefix)
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80]
	}
	return s
}

// distance counts the edits that turn the beginning of s into prefix.
func distance(s, prefix string) int {
	s = s[:min(len(s), len(prefix))]
	row := make([]int, len(prefix)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(s) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(prefix) {
			substitute := diagonal
			if s[i] != prefix[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(prefix)]
}

func id(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return errors.New("want a decimal ID from 0 to 4294967295")
	}
	return nil
}

func name(s string) error {
	if s == "" || strings.ContainsAny(s, ":\n\x00") {
		return errors.New("want a name from the user or group database")
	}
	return nil
}

func absolutePath(s string) error {
	if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "\n\x00") {
		return errors.New("want an absolute path")
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "." || part == ".." {
			return errors.New("want a path without the parts . or .. in it")
		}
	}
	return nil
}

func sha256Hex(s string) error { return hexDigits(32)(s) }

func hexDigits(bytes int) func(string) error {
	return func(s string) error {
		if b, err := hex.DecodeString(s); err != nil || len(b) != bytes || strings.ToLower(s) != s {
			return fmt.Errorf("want %d lower-case hexadecimal digits", 2*bytes)
		}
		return nil
	}
}

func oneOf(values ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("want %s", strings.Join(values, " or "))
		}
		return nil
	}
}

// containerID is 64 hexadecimal digits, or the name of a machine.
func containerID(s string) error {
	if s == "" || len(s) > 64 || strings.ContainsAny(s, "/: \n\x00") {
		return errors.New("want the whole ID of 64 hexadecimal digits, or a machine's name")
	}
	return nil
}

// unitName follows systemd.unit(5): a name and a type suffix, at most 255
// characters.
func unitName(s string) error {
	dot := strings.LastIndexByte(s, '.')
	if dot <= 0 || dot == len(s)-1 || len(s) > 255 || strings.ContainsAny(s, "/ \n\x00") {
		return errors.New("want a unit name with its suffix, such as agent.service")
	}
	return nil
}

func sliceName(s string) error {
	if unitName(s) != nil || !strings.HasSuffix(s, ".slice") {
		return errors.New("want a slice name, such as system.slice")
	}
	return nil
}

func pcrValue(s string) error {
	n, value, _ := strings.Cut(s, ":")
	if pcr, err := strconv.ParseUint(n, 10, 8); err != nil || pcr > 23 || strconv.FormatUint(pcr, 10) != n {
		return errors.New("want a PCR from 0 to 23, a colon and its value")
	}
	return sha256Hex(value)
}

func secureBoot(s string) error {
	if s != "on" {
		return errors.New("want on: what does not ask for Secure Boot does not name it")
	}
	return nil
}

// hostname follows hostname(7).
func hostname(s string) error {
	outside := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.')
	}
	if s == "" || len(s) > 253 || strings.ContainsFunc(s, outside) {
		return errors.New("want a host name of letters, digits, hyphens and dots")
	}
	return nil
}
