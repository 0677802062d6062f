// Package inventory finds the secrets that lie on a host.
//
// A finder knows one kind of place: what its files are called ([KindOf]) and how a secret
// is written in them ([ReadFile]). It is given bytes and returns findings. It opens
// nothing, runs nothing, and its work is in proportion to what it is given, whatever that
// is. Walking trees, reading processes and asking git is done by package scan.
//
// What it looks for is a secret that works for whoever reads it. Names that stand for one
// (a handle of vouchd, a variable, a path, a program to ask) are no secret, and neither is
// what a document has in the place of one. A value that has no vendor's shape counts only
// where its name says that it is a secret, or where nothing else can stand. So a secret
// under an innocent name is missed; the other way about, an inventory would be noise that
// nobody reads.
package inventory

import (
	"time"

	"github.com/vouchd/vouchd/secret"
)

// The kinds of places.
const (
	Env            = "env"             // .env and its like
	Shell          = "shell"           // profiles of shells
	Unit           = "unit"            // of systemd, and drop-ins
	Process        = "process"         // the environment of a running one
	AWS            = "aws"             // ~/.aws
	Gcloud         = "gcloud"          // credentials of gcloud, keys of service accounts
	Azure          = "azure"           // ~/.azure
	Kubeconfig     = "kubeconfig"      //
	Docker         = "docker"          // logins at registries
	Netrc          = "netrc"           // and apt's auth.conf, which is of the same form
	GitCredentials = "git-credentials" //
	GitRemote      = "git-remote"      // URLs and headers in a configuration of git
	SSHKey         = "ssh-key"         // without a passphrase
	Npmrc          = "npmrc"           //
	Pypirc         = "pypirc"          //
	Cargo          = "cargo"           //
	GH             = "gh"              // GitHub's command line
	MCP            = "mcp"             // servers and logins of coding agents
	CI             = "ci"              // pipelines
	History        = "history"         // commits of git
	KeyFile        = "key-file"        // private keys elsewhere
)

// Who can read a file.
const (
	Everyone = "everyone"
	Group    = "group"
	Owner    = "owner"
)

// How long a secret works.
const (
	Static  = "static"  // until somebody changes it
	Expires = "expires" // until a time that its own text says
	Leased  = "leased"  // no secret stands there: vouchd is asked for it
)

// A Finding is a secret at one place.
type Finding struct {
	Kind string `json:"kind"`
	Path string `json:"path"` // of the file, or what stands for it: /proc/PID/environ, git:DIR@COMMIT:PATH
	Line int    `json:"line,omitempty"`
	Item string `json:"item"`           // which one, in the words of the file: a variable, a profile, a remote
	What string `json:"what,omitempty"` // whose secret it is, as package redact names shapes

	// Fingerprint is the same for the same value on this host, and tells nothing to
	// whoever lacks the host's key. Package scan fills it in.
	Fingerprint string `json:"fingerprint,omitempty"`

	// Value is the secret, for what replaces it. It is empty if Leased.
	Value secret.Bytes `json:"-"`
	// Start and End are where in the file the value is written, without quotes; both 0
	// if it is not written in one piece. It may be escaped there as the file's syntax has it.
	Start int `json:"-"`
	End   int `json:"-"`

	// File is where the value lies instead, which a unit has its name of. Value is empty
	// until package scan has read it; Start and End are the name's then.
	File string `json:"file,omitempty"`

	// State is how long it works; package scan fills it in.
	State string `json:"state,omitempty"`
	// Leased is that a handle or a program of vouchd stands there, and so no secret.
	Leased bool `json:"leased,omitempty"`
	// Expires is when it ends to work, if the value itself says so.
	Expires time.Time `json:"expires,omitzero"`
	Broad   string    `json:"broad,omitempty"` // why it may do more than one program needs
	Replace string    `json:"replace"`         // the command that replaces it, or what to do if there is none

	Hint string `json:"hint,omitempty"` // what else is to do, or better

	// Of the file that holds it; package scan fills them in.
	Owner    string    `json:"owner,omitempty"`
	Mode     string    `json:"mode,omitempty"`    // of permissions, octal
	Readers  []string  `json:"readers,omitempty"` // everyone, group NAME (MEMBERS), user NAME
	Access   string    `json:"access,omitempty"`  // everyone, group or owner
	Modified time.Time `json:"modified,omitzero"`
	// Of a process.
	Program   string `json:"program,omitempty"`
	Processes int    `json:"processes,omitempty"` // that have it from one another

	Places int `json:"places,omitempty"` // in how many places the same secret lies, this one included
}

// StateOf returns how long the secret works.
func (f *Finding) StateOf() string {
	switch {
	case f.Leased:
		return Leased
	case !f.Expires.IsZero():
		return Expires
	}
	return Static
}

// Static reports whether the secret works until somebody changes it.
func (f *Finding) Static() bool { return f.StateOf() == Static }
