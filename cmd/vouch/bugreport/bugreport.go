// Package bugreport is vouch bugreport: what somebody else needs to find out what is wrong
// on a host, in one file, without a secret in it.
//
// It holds what vouch and the system say, and no file as it is: a configuration has comments,
// and a definition may have been pasted from anywhere. What is said passes through a search for
// keys by their shape nonetheless, and for passwords in URLs.
package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/redact"
)

const (
	partTime = 30 * time.Second
	maxPart  = 4 << 20 // bytes; what is said last is kept
)

// A part is one file of a report.
type part struct {
	name  string
	about string
	argv  []string                           // "vouch" is this program
	own   func(*cli.Options) ([]byte, error) // in place of argv
}

var parts = []part{
	{"version.json", "which builds", []string{"vouch", "version", "--output", "json"}, nil},
	{"doctor.json", "the machine and the configuration", []string{"vouch", "doctor", "--output", "json"}, nil},
	{"status.json", "the daemon's state and problems", []string{"vouch", "status", "--output", "json"}, nil},
	{"check.txt", "problems of the files in /etc/vouchd", []string{"vouch", "check"}, nil},
	{"settings.json", "vouchd.yaml with its defaults", nil, settings},
	{"entries.json", "registration entries", []string{"vouch", "entry", "list", "--output", "json"}, nil},
	{"credentials.json", "credentials by name, broker and upstream", nil, definitions},
	{"leases.json", "leases", []string{"vouch", "lease", "list", "--output", "json"}, nil},
	{"secrets.json", "names and ages of sealed secrets", []string{"vouch", "secret", "list", "--output", "json"}, nil},
	{"programs.json", "programs of vouch run", []string{"vouch", "program", "list", "--output", "json"}, nil},
	{"log.txt", "the last day of the attestation log", []string{"vouch", "log", "show", "--since", "24h", "--utc"}, nil},
	{"log-verify.txt", "whether the log is whole", []string{"vouch", "log", "verify", "--live"}, nil},
	{"unit.txt", "the daemon's unit", []string{"systemctl", "show", "--no-pager", "vouchd.service", "--property=ActiveState,SubState,Result,ExecMainStatus,NRestarts,ActiveEnterTimestamp,FragmentPath,DropInPaths,MemoryCurrent,TasksCurrent"}, nil},
	{"journal.txt", "what the daemon has said", []string{"journalctl", "--no-pager", "--output=short-iso-precise", "--unit=vouchd.service", "--lines=1000"}, nil},
	{"kernel.txt", "the kernel", []string{"uname", "-srvm"}, nil},
}

// New returns the command.
func New(o *cli.Options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "bugreport [--write FILE]",
		Short: "Collect what a bug report needs, without secrets",
		Long: `Bugreport writes a .tar.gz with what vouch and the system say of this host: versions,
doctor, status, settings, entries, credentials by name, leases, the last day of the log,
and the daemon's unit and journal. It holds no file as it is, no value of a credential and
no handle; what looks like a key is taken out. Host names, user names, paths and SPIFFE IDs
are in it: look at it before you send it.

What cannot be asked is left out, and the report says why. Run it as root.`,
		Example: `  vouch bugreport
  vouch bugreport --write /tmp/report.tar.gz && tar tzf /tmp/report.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = "vouchd-bugreport-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			missing, err := report(cmd, o, file)
			if err != nil {
				return fmt.Errorf("writing a bug report to %s: %w", file, err)
			}
			return o.Print(cmd, map[string]any{"file": file, "missing": missing}, func(w io.Writer) {
				fmt.Fprintf(w, "Written to %s, for its owner to read. Look at it before you send it.\n", file)
				for _, m := range missing {
					fmt.Fprintf(w, "Not all of %s\n", m)
				}
			})
		},
	}
	cmd.Flags().StringVar(&file, "write", "", "write to this `file`, which must not exist (default: a name with the time)")
	return cmd
}

// report writes the file, and returns which parts could not be had, and why.
func report(cmd *cobra.Command, o *cli.Options, file string) (missing []string, err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(file)
		}
	}()
	z := gzip.NewWriter(f)
	t := tar.NewWriter(z)
	now := time.Now().UTC().Truncate(time.Second)
	add := func(name string, data []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "vouchd-bugreport/" + name, Size: int64(len(data)), Mode: 0o600, ModTime: now}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := t.Write(data)
		return err
	}
	var index strings.Builder
	missing = []string{}
	for _, p := range parts {
		if cli.IsTerminal(cmd.ErrOrStderr()) {
			fmt.Fprintf(cmd.ErrOrStderr(), "\r\033[K%s", p.about)
		}
		data, err := p.collect(cmd.Context(), o)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %s", p.name, firstLine(clean([]byte(err.Error())))))
		}
		if err := add(p.name, clean(data)); err != nil {
			return nil, err
		}
		fmt.Fprintf(&index, "%-18s%s\n", p.name, p.about)
	}
	if cli.IsTerminal(cmd.ErrOrStderr()) {
		fmt.Fprint(cmd.ErrOrStderr(), "\r\033[K")
	}
	for _, m := range missing {
		fmt.Fprintf(&index, "not all of %s\n", m)
	}
	if err := add("README.txt", []byte(index.String())); err != nil {
		return nil, err
	}
	return missing, errors.Join(t.Close(), z.Close(), f.Sync())
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// collect returns what there is of a part, also where there is an error.
func (p part) collect(ctx context.Context, o *cli.Options) ([]byte, error) {
	if p.own != nil {
		return p.own(o)
	}
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	argv := p.argv
	if argv[0] == "vouch" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		argv = append([]string{self, "--config", o.Config}, argv[1:]...)
	}
	var out, said tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	data := append(out.b, said.b...)
	switch {
	case ctx.Err() != nil:
		return data, fmt.Errorf("it took longer than %s", partTime)
	case err != nil && len(out.b) == 0: // some say that something is wrong, and what
		return data, fmt.Errorf("%s %w: %s", filepath.Base(argv[0]), err, firstLine(said.b))
	}
	return data, nil
}

// A tail keeps what is written last.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*maxPart {
		t.b = append(t.b[:0], t.b[len(t.b)-maxPart:]...)
	}
	return len(p), nil
}

// userinfo is that of a URL, and what else is called a password where it stands.
var (
	userinfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@"']*@`)
	named    = regexp.MustCompile(`(?i)\b((?:[a-z0-9_-]*(?:password|passwd|passphrase|secret|token|api_?key|private_key|authorization))["']?\s*[=:]\s*["']?(?:bearer |basic )?)([^\s"',;}\]]{6,})`)
)

// clean takes out what looks like a key, and passwords where they are called so.
func clean(data []byte) []byte {
	var b bytes.Buffer
	w := redact.Shapes(&b, true)
	w.Write(data) // a buffer takes every write
	w.Close()
	out := userinfo.ReplaceAll(b.Bytes(), []byte("${1}[redacted]@"))
	return named.ReplaceAllFunc(out, func(m []byte) []byte {
		parts := named.FindSubmatch(m)
		if v := parts[2]; v[0] == '/' || bytes.HasPrefix(v, []byte("vouch:")) { // a path, or a handle's name
			return m
		}
		return append(bytes.Clone(parts[1]), "[redacted]"...)
	})
}

func settings(o *cli.Options) ([]byte, error) {
	c, err := o.Load()
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(c, "", "  ")
}

func definitions(o *cli.Options) ([]byte, error) {
	c, err := o.Load()
	if err != nil {
		return nil, err
	}
	defs, err := credential.LoadDefinitions(c.CredentialsDir, brokers.All(brokers.Deps{}), true)
	if err != nil {
		return nil, err
	}
	defer defs.Close()
	type view struct {
		Name     string `json:"name"`
		Broker   string `json:"broker"`
		Upstream string `json:"upstream"`
		Deliver  string `json:"deliver"`
		Bind     string `json:"bind"`
		TTL      string `json:"ttl"`
		Position string `json:"position"`
	}
	views := []view{}
	for _, d := range defs.All() {
		views = append(views, view{d.Name, d.Broker, d.Traits.Upstream, string(d.Deliver), fmt.Sprint(d.Bind), d.TTL.String(), d.Pos.String()})
	}
	return json.MarshalIndent(views, "", "  ")
}
