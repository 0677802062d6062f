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

// A Kind is one kind of selector.
type Kind struct {
	Prefix string // "unix:uid:"
	Trust  Trust
	Says   string // what a selector of this kind states, for documents and explanations

	check func(arg string) error
}

// Kinds lists every kind this version knows, by prefix.
func Kinds() []Kind { return slices.Clone(kinds) }

var kinds = []Kind{
	{"apparmor:profile:", KernelEnforced, "AppArmor profile that is enforced on the process", name},
	{"cgroup:path:", KernelEnforced, "control group of the process, from the hierarchy's root", absolutePath},
	{"cgroup:slice:", KernelEnforced, "innermost slice among the leading parts of that path", sliceName},
	{"container:id:", ManagerEnforced, "ID or name of the container, as a runtime that root started gave it", containerID},
	{"container:runtime:", ManagerEnforced, "runtime of the container, by the control group it makes", oneOf("docker", "containerd", "podman", "cri-o", "nspawn")},
	{"ima:sha256:", KernelEnforced, "SHA-256 of the program, which the kernel has measured itself (IMA)", sha256Hex},
	{"nnp:", KernelEnforced, "neither the process nor its children can gain privileges by exec", oneOf("true")},
	{"node:hostname:", Weak, "the machine's name, as it calls itself", hostname},
	{"ns:ipc:", KernelEnforced, "whether the IPC namespace is that of PID 1", oneOf("host", "private")},
	{"ns:mnt:", KernelEnforced, "whether the mount namespace is that of PID 1", oneOf("host", "private")},
	{"ns:net:", KernelEnforced, "whether the network namespace is that of PID 1", oneOf("host", "private")},
	{"ns:pid:", KernelEnforced, "whether the PID namespace is that of PID 1", oneOf("host", "private")},
	{"ns:user:", KernelEnforced, "whether the user namespace is that of PID 1", oneOf("host", "private")},
	{"parent:sha256:", Weak, "SHA-256 of the program that the parent process runs now", sha256Hex},
	{"parent:systemd:id:", ManagerEnforced, "system unit the parent process belongs to", unitName},
	{"script:path:", ManagerEnforced, "path of the script that the interpreter was started with", absolutePath},
	{"script:sha256:", ManagerEnforced, "SHA-256 of that script, unchanged since the process was started", sha256Hex},
	{"script:tree_sha256:", ManagerEnforced, "digest, as vouch hash prints it, of the script's directory or of the virtual environment", sha256Hex},
	{"seccomp:", KernelEnforced, "a seccomp filter is in force", oneOf("filter")},
	{"selinux:type:", KernelEnforced, "type in the SELinux context of the process", name},
	{"systemd:exec_sha256:", ManagerEnforced, "SHA-256 of a file named in the unit's ExecStart", sha256Hex},
	{"systemd:fragment_path:", ManagerEnforced, "path of the unit's file", absolutePath},
	{"systemd:fragment_sha256:", ManagerEnforced, "SHA-256 of the unit's file, which root wrote before the process was started", sha256Hex},
	{"systemd:id:", ManagerEnforced, "system unit the process belongs to", unitName},
	{"systemd:invocation_id:", ManagerEnforced, "this one start of the unit", hexDigits(16)},
	{"systemd:slice:", ManagerEnforced, "slice of that unit", sliceName},
	{"systemd:user_unit:", Weak, "unit of the user's own service manager; the user chose its name", unitName},
	{"tpm:ek:sha256:", TPMEnforced, "SHA-256 of the TPM's endorsement key", sha256Hex},
	{"tpm:pcr:", TPMEnforced, "value of one of the TPM's PCRs, SHA-256 bank: number:value", pcrValue},
	{"tpm:secureboot:", TPMEnforced, "whether the machine booted with Secure Boot", secureBoot},
	{"unix:fsverity:sha256:", KernelEnforced, "fs-verity digest of the program's file, by SHA-256", sha256Hex},
	{"unix:fsverity:sha512:", KernelEnforced, "fs-verity digest of the program's file, by SHA-512", hexDigits(64)},
	{"unix:gid:", KernelEnforced, "effective group ID", id},
	{"unix:group:", KernelEnforced, "name of the effective group", name},
	{"unix:path:", KernelEnforced, "path where the daemon finds the very file that the process runs", absolutePath},
	{"unix:sha256:", KernelEnforced, "SHA-256 of the running program's file", sha256Hex},
	{"unix:supplementary_gid:", KernelEnforced, "one of the supplementary group IDs", id},
	{"unix:supplementary_group:", KernelEnforced, "name of one of the supplementary groups", name},
	{"unix:uid:", KernelEnforced, "effective user ID", id},
	{"unix:user:", KernelEnforced, "name of the effective user", name},
}

// kindOf splits s into its kind and the argument after the kind's prefix.
func kindOf(s string) (Kind, string, error) {
	for _, k := range kinds {
		if arg, ok := strings.CutPrefix(s, k.Prefix); ok {
			return k, arg, nil
		}
	}
	near := slices.MinFunc(kinds, func(a, b Kind) int {
		return cmp.Compare(distance(s, a.Prefix), distance(s, b.Prefix))
	})
	return Kind{}, "", fmt.Errorf("selector %q is of no known kind, of which %s is nearest", clip(s), near.Prefix)
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
