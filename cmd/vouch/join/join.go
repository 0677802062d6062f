// Package join has a host join a SPIRE server: it checks the server, says what it is about
// to change, changes it, and waits until the server has attested the host.
package join

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

const (
	serverTime = 10 * time.Second // for the server to answer
	joinTime   = 2 * time.Minute  // to be attested
)

var attestors = []string{config.AttestorX509POP, config.AttestorJoinToken, config.AttestorVouchd}

// A command is vouch node join.
type command struct {
	*cli.Options
	server, bundle, attestor, token string
	dryRun                          bool
}

// A result is what the command did.
type result struct {
	Server   string   `json:"server"`
	Sequence uint64   `json:"bundle_sequence"`
	Changes  []string `json:"changes"` // in the order in which they were made
	DryRun   bool     `json:"dry_run,omitempty"`
	Agent    string   `json:"agent,omitempty"`
	Next     string   `json:"next,omitempty"`
}

// Command returns vouch node join.
func Command(o *cli.Options) *cobra.Command {
	c := &command{Options: o}
	cmd := &cobra.Command{
		Use:   "join --server HOST:PORT --bundle FILE",
		Short: "Join a SPIRE server and take its word on identities",
		Long: `Join checks that the server is that of this host's trust domain, installs its bundle, sets
authority.mode: spire in vouchd.yaml, restarts the daemon and waits until the server has
attested this host. --dry-run says what it would change. Running it again changes nothing.

The bundle is what spire-server bundle show prints, brought here on a way that nobody can
change it on. By default the host proves which one it is by the certificate that vouch node
install has put there (attestor x509pop); with --attestor join_token, by a token of
spire-server token generate in --token-file, which is moved; with --attestor vouchd, by its
TPM, where the server has the plug-in vouchd-spire.

Entries in entries.d are not in force any more: the server has the entries, and grants.d
says which of their identities may lease credentials. To go back, put the copy of
vouchd.yaml beside it in its place and restart the daemon.`,
		Example: `  vouch node join --server spire.example.org:8081 --bundle bundle.pem --dry-run
  vouch node join --server spire.example.org:8081 --bundle bundle.pem
  vouch node join --server spire.example.org:8081 --bundle bundle.pem --attestor join_token --token-file token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	cmd.Flags().StringVar(&c.server, "server", "", "the server's `host:port`")
	cmd.Flags().StringVar(&c.bundle, "bundle", "", "the trust domain's bundle, a `file` in PEM or SPIFFE's JSON")
	cmd.Flags().StringVar(&c.attestor, "attestor", config.AttestorX509POP, "how this host proves which one it is: x509pop, join_token or vouchd")
	cmd.Flags().StringVar(&c.token, "token-file", "", "with join_token, the `file` with the token")
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "say what would be changed, and change nothing")
	cmd.RegisterFlagCompletionFunc("attestor", cobra.FixedCompletions(attestors, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c *command) run(cmd *cobra.Command) error {
	switch {
	case c.server == "" || c.bundle == "":
		return cli.Usagef("--server and --bundle are required; see vouch node join --help")
	case !slices.Contains(attestors, c.attestor):
		return cli.Usagef("--attestor %q: want %s", c.attestor, strings.Join(attestors, ", "))
	case c.token != "" && c.attestor != config.AttestorJoinToken:
		return cli.Usagef("--token-file goes with --attestor join_token")
	}
	before, err := c.Load()
	if err != nil {
		return err
	}
	p, err := c.plan(before)
	if err != nil {
		return err
	}
	r := result{Server: c.server, DryRun: c.dryRun, Changes: []string{}}
	ctx, cancel := context.WithTimeout(cmd.Context(), serverTime)
	defer cancel()
	stop := cli.Progress(cmd, 2*time.Second, func() string { return "waiting for " + c.server })
	r.Sequence, err = spire.Check(ctx, c.server, before.TrustDomain, p.roots)
	stop()
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	if c.dryRun {
		for _, s := range p.steps {
			r.Changes = append(r.Changes, s.says)
		}
		return c.Print(cmd, r, r.text)
	}
	client, err := c.Admin()
	if err != nil {
		return err
	}
	if st, err := client.Status(cmd.Context()); err == nil && c.attestor == config.AttestorX509POP && st.Node.Agent == nil {
		return errors.New("nothing was changed: this host has no certificate to join a SPIRE server with; run vouch node request --spire, have it approved with vouch authority approve --spire, and vouch node install the approval; or use --attestor join_token")
	}
	for _, s := range p.steps {
		if err := s.do(cmd.Context()); err != nil {
			return fmt.Errorf("%w; done so far: %s", err, cmp.Or(strings.Join(r.Changes, ", "), "nothing"))
		}
		r.Changes = append(r.Changes, s.says)
	}
	agent, err := c.attested(cmd)
	if err != nil {
		return fmt.Errorf("%s; done: %s; to go back: %s", err, cmp.Or(strings.Join(r.Changes, ", "), "nothing was to be changed"), p.back)
	}
	r.Agent = agent
	r.Next = fmt.Sprintf("spire-server entry create -parentID %s -spiffeID spiffe://%s/… -selector systemd:id:….service", agent, before.TrustDomain.Name())
	return c.Print(cmd, r, r.text)
}

// attested waits until the server has attested this host, and returns its ID.
func (c *command) attested(cmd *cobra.Command) (agent string, err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), joinTime)
	defer cancel()
	defer cli.Progress(cmd, 2*time.Second, func() string { return "waiting until " + c.server + " has attested this host" })()
	why := "the daemon does not answer; see journalctl -u vouchd"
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		client, err := c.Admin()
		var st view.Status
		if err == nil {
			st, err = client.Status(ctx)
		}
		switch s := st.Authority.SPIRE; {
		case err != nil:
		case s == nil:
			why = "the daemon still runs with its former configuration; restart it"
		case s.Online && s.Agent != "":
			return s.Agent, nil
		default:
			why = cmp.Or(s.Error, "the server has not answered yet")
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the server has not attested this host within %v: %s", joinTime, why)
		case <-tick.C:
		}
	}
}

func (r result) text(w io.Writer) {
	fmt.Fprintf(w, "%s is the server of this trust domain; its bundle has sequence %d.\n", r.Server, r.Sequence)
	if len(r.Changes) == 0 {
		fmt.Fprintln(w, "Nothing is to be changed.")
	}
	for _, s := range r.Changes {
		if r.DryRun {
			s = "would " + s
		}
		fmt.Fprintf(w, "  %s\n", s)
	}
	if r.Agent != "" {
		fmt.Fprintf(w, "It has attested this host as\n  %s\nNext, at the server:\n  %s\n", r.Agent, r.Next)
	}
}

// restart has systemd restart the daemon.
func restart(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "systemctl", "restart", "vouchd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl restart vouchd: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// underSystemd reports whether systemd runs this machine (sd_booted(3)).
func underSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
