package inventory

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/redact"
)

// sshKeyFinder reads keys of SSH that open without a passphrase.
var sshKeyFinder = finder{
	kind: SSHKey,
	is: func(p place) bool {
		if strings.HasSuffix(p.name, ".pub") || strings.HasPrefix(p.name, "known_hosts") || strings.HasPrefix(p.name, "authorized_keys") {
			return false
		}
		return p.dir == ".ssh" && p.name != "config" && p.name != "environment" || sshKeyName.MatchString(p.name) && !p.isTestData()
	},
	read:    func(r *reader) error { r.privateKeys(); return nil },
	replace: replaceKey,
}

var sshKeyName = regexp.MustCompile(`^id_(rsa|dsa|ecdsa|ed25519)(_sk)?$|^(deploy|ssh)[-_]key$`)

// keyFileFinder reads private keys that are anywhere else.
var keyFileFinder = finder{
	kind: KeyFile,
	is: func(p place) bool {
		n := strings.ToLower(p.name)
		switch {
		case p.isTestData(), isHostKey(p), slices.Contains(shippedKeys, n):
			return false
		case p.dir == "age" && n == "keys.txt":
			return true
		}
		for _, suffix := range []string{".pem", ".key", ".p12", ".pfx", ".p8", ".ppk", ".agekey", "_rsa", "_ed25519", "_ecdsa"} {
			if strings.HasSuffix(n, suffix) && n != suffix {
				return true
			}
		}
		return false
	},
	read: func(r *reader) error {
		r.privateKeys()
		for _, found := range redact.Find(r.data) {
			if found.Shape == "age-key" {
				r.whole("identity", "age-key", r.data[found.Start:found.End], found.Start, found.End)
			}
		}
		switch {
		case isPKCS12(r.data):
			f := r.add("PKCS#12", r.data, 0, len(r.data))
			f.What, f.Line = "pkcs12", 0
			f.Broad = "" // nobody knows what is in it
		case bytes.HasPrefix(r.data, []byte("PuTTY-User-Key-File-")) && puttyOpen.Match(r.data):
			f := r.add("PuTTY key", r.data, 0, len(r.data))
			f.What = "private-key"
		}
		return nil
	},
	replace: replaceKey,
}

// shippedKeys are the names of keys that come with a distribution or a compiler, for tries.
var shippedKeys = []string{"ssl-cert-snakeoil.key", "platform_root_key.pem"}

func replaceKey(f *Finding, path string) string {
	if f.What == "ssh-key" {
		return "ssh-keygen -p -f " + path
	}
	return "vouch migrate file " + path
}

// isHostKey reports whether a key is a host's own for SSH. It has no passphrase, since
// sshd starts without anybody there.
func isHostKey(p place) bool {
	return strings.HasPrefix(p.name, "ssh_host_") && p.dir == "ssh"
}

var (
	pemKey    = regexp.MustCompile(`-----BEGIN ((?:[A-Z0-9]+ )*)PRIVATE KEY-----([^-]+)-----END ((?:[A-Z0-9]+ )*)PRIVATE KEY-----`)
	puttyOpen = regexp.MustCompile(`(?m)^Encryption: none\r?$`)
)

// privateKeys notes each key in PEM (RFC 7468) that opens without a passphrase.
func (r *reader) privateKeys() {
	for _, m := range pemKey.FindAllSubmatchIndex(r.data, maxFindings) {
		label := strings.TrimSpace(string(r.data[m[2]:m[3]]))
		what, open := openKey(label, r.data[m[4]:m[5]])
		if !open {
			continue
		}
		f := r.add(strings.TrimSpace(label+" PRIVATE KEY"), r.data[m[0]:m[1]], m[0], m[1])
		if f.What = what; r.kind == SSHKey {
			f.What = "ssh-key"
		}
	}
}

// isPEMKey reports whether a text has a key in it that opens without a passphrase.
func isPEMKey(text []byte) bool {
	m := pemKey.FindSubmatch(text)
	if m == nil {
		return false
	}
	_, open := openKey(strings.TrimSpace(string(m[1])), m[2])
	return open
}

// openKey reports whether what is inside a PEM block is a key that no passphrase guards.
func openKey(label string, body []byte) (what string, open bool) {
	if label == "ENCRYPTED" || bytes.Contains(body, []byte("ENCRYPTED")) { // RFC 5958 §3, RFC 1421 §4.6.1.1
		return "", false
	}
	lines := slices.DeleteFunc(bytes.Fields(body), func(line []byte) bool { return bytes.IndexByte(line, ':') >= 0 })
	der, err := base64.StdEncoding.DecodeString(string(bytes.Join(lines, nil)))
	if err != nil || len(der) < 32 {
		return "", false // a document's, in which there is an ellipsis
	}
	if label != "OPENSSH" {
		return "private-key", der[0] == 0x30 // a sequence, X.690 §8.9
	}
	// PROTOCOL.key of OpenSSH: a magic, then the cipher's name.
	rest, ok := bytes.CutPrefix(der, []byte("openssh-key-v1\x00"))
	if !ok || len(rest) < 8 {
		return "", false
	}
	n := binary.BigEndian.Uint32(rest)
	return "ssh-key", n == 4 && bytes.HasPrefix(rest[4:], []byte("none"))
}

// isPKCS12 reports whether a file begins as one (RFC 7292 §4): a sequence whose first
// member is the number 3.
func isPKCS12(data []byte) bool {
	return len(data) > 32 && data[0] == 0x30 && (bytes.HasPrefix(data[2:], []byte{2, 1, 3}) || bytes.HasPrefix(data[3:], []byte{2, 1, 3}) ||
		bytes.HasPrefix(data[4:], []byte{2, 1, 3}) || bytes.HasPrefix(data[5:], []byte{2, 1, 3}))
}

// SniffLen is how much of a file [Sniff] wants to see.
const SniffLen = 4096

// MaySniff reports whether a file whose name tells no kind, of a size, is one of those
// that keys are put in.
func MaySniff(path string, size int64) bool {
	return size >= 64 && size <= 64<<10 && MaySniffName(path)
}

// MaySniffName is [MaySniff] for a file whose size is not known yet.
func MaySniffName(path string) bool {
	p := placeOf(path)
	if p.isTestData() || isHostKey(p) {
		return false
	}
	switch i := strings.LastIndexByte(p.name, '.'); {
	case i <= 0:
		return i < 0
	default:
		return slices.Contains([]string{".json", ".txt", ".crt", ".cer", ".cert", ".priv", ".private", ".id", ".age", ".bak", ".old"}, p.name[i:])
	}
}

// Sniff returns the kind of a file by how it begins.
func Sniff(head []byte) (kind string, ok bool) {
	switch {
	case isServiceAccount(head):
		return Gcloud, true
	case bytes.Contains(head, []byte("PRIVATE KEY-----")) && !bytes.Contains(head, []byte(`\n`)), bytes.Contains(head, []byte("AGE-SECRET-KEY-1")):
		return KeyFile, true
	}
	return "", false
}
