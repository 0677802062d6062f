// Package drill is vouch drill: what agents do when a credential is taken from them, found
// out on purpose and not in the middle of an incident.
package drill

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// New returns the command.
func New(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Try what happens when a credential is revoked",
	}
	cmd.AddCommand(newRevoke(o), newEnd(o))
	return cmd
}

// A revocation is what the flags of vouch drill revoke say.
type revocation struct {
	view.DrillRequest
	identity string
	recovery time.Duration
	yes      bool
}

// A report is how a drill went.
type report struct {
	view.Drill
	Verdicts []Verdict `json:"verdicts"`
}

func newRevoke(o *cli.Options) *cobra.Command {
	var r revocation
	cmd := &cobra.Command{
		Use:   "revoke --credential NAME",
		Short: "Withhold a credential, watch its users, and give it back",
		Long: `Revoke ends the leases of a credential and refuses it for a while, as an incident would,
then gives it back and says what each process did: whether it ended, paused between
attempts, went on in a tight loop or with the handle that it has, and whether it was served
again. It exits 1 unless everybody coped; who asked for nothing meanwhile has not shown it.

The daemon gives the credential back at the end of the time by itself, whatever becomes of
this command; Ctrl-C gives it back at once, and so does a restart of the daemon. Both the
pull and its end are in the log, and vouch status shows the drill. Who holds a value itself
may go on with it if its vendor does not end it: the daemon does not see that. The agents are
told what they would be in an incident.`,
		Example: `  vouch drill revoke --credential github --for 30s
  vouch drill revoke --credential openai --identity spiffe://example.org/agent/research --for 2m --yes --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Credential == "" {
				return cli.Usagef("--credential is required")
			}
			if r.identity != "" {
				id, err := spiffeid.FromString(r.identity)
				if err != nil {
					return cli.Usagef("--identity %q: %w", r.identity, err)
				}
				r.Identity = id
			}
			if err := r.confirm(cmd); err != nil {
				return err
			}
			return r.run(cmd, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Credential, "credential", "", "the `name` of the credential to withhold")
	f.StringVar(&r.identity, "identity", "", "withhold it from this `SPIFFE ID` alone")
	f.DurationVar(&r.For, "for", 30*time.Second, "how long, an hour at most")
	f.DurationVar(&r.recovery, "recovery", 30*time.Second, "how long to wait afterwards for its users to be served again")
	f.BoolVar(&r.yes, "yes", false, "do not ask")
	f.BoolVar(&r.Anyway, "anyway", false, "although nobody holds a lease of it")
	return cmd
}

func newEnd(o *cli.Options) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "end --credential NAME",
		Short: "Give back a credential that a drill withholds",
		Long: `End ends a drill before its time, for when the command that began it is gone. vouch status
shows the drills that go on.`,
		Example: `  vouch drill end --credential github`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return cli.Usagef("--credential is required")
			}
			client, err := o.Admin()
			if err != nil {
				return err
			}
			d, err := client.EndDrill(cmd.Context(), name)
			if err != nil {
				return err
			}
			return o.Print(cmd, d, func(w io.Writer) { fmt.Fprintf(w, "%s is granted again since %s\n", name, cli.Time(d.Ended)) })
		},
	}
	cmd.Flags().StringVar(&name, "credential", "", "the `name` of the credential to give back")
	return cmd
}

// confirm asks whoever sits at a terminal: this is an outage on purpose.
func (r *revocation) confirm(cmd *cobra.Command) error {
	if r.yes {
		return nil
	}
	if !cli.IsInteractive(cmd.InOrStdin()) {
		return cli.Usagef("this takes the credential from its users for %s; give --yes to do it without being asked", r.For)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Withhold %s from its users for %s? [y/N] ", r.Credential, r.For)
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	if err != nil || strings.ToLower(strings.TrimSpace(line)) != "y" {
		return cli.Usagef("nothing was done")
	}
	return nil
}

const look = 200 * time.Millisecond

func (r *revocation) run(cmd *cobra.Command, o *cli.Options) error {
	client, err := o.Admin()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	last := context.WithoutCancel(ctx) // what was begun is ended, also by Ctrl-C
	d, err := client.BeginDrill(last, r.DrillRequest)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s is withheld until %s; Ctrl-C gives it back\n", r.Credential, cli.Time(d.Until))
	wait := func(until time.Time, done func() bool) {
		for ctx.Err() == nil && time.Now().Before(until) && !done() {
			select {
			case <-ctx.Done():
			case <-time.After(min(look, time.Until(until))):
			}
			if now, err := client.Drill(ctx, r.Credential); err == nil {
				d = now
				r.show(cmd, d)
			}
		}
	}
	wait(d.Until, func() bool { return !d.Ended.IsZero() })
	if d.Ended.IsZero() {
		if d, err = client.EndDrill(last, r.Credential); err != nil {
			return fmt.Errorf("%w; the daemon gives %s back by itself at its time, or when it starts", err, r.Credential)
		}
	}
	if d.Interrupted {
		return fmt.Errorf("vouchd was started anew during the drill, and has given %s back; what its users did until then is not known: repeat it", r.Credential)
	}
	wait(d.Ended.Add(r.recovery), func() bool { return settled(d) })
	if cli.IsTerminal(cmd.ErrOrStderr()) {
		fmt.Fprint(cmd.ErrOrStderr(), "\r\033[K")
	}
	verdicts := judge(d)
	if err := o.Print(cmd, report{d, verdicts}, func(w io.Writer) { write(w, d, verdicts) }); err != nil {
		return err
	}
	for _, v := range verdicts {
		if !v.OK {
			return cli.ErrSaid
		}
	}
	return nil
}

// show says on a terminal how it goes.
func (r *revocation) show(cmd *cobra.Command, d view.Drill) {
	if w := cmd.ErrOrStderr(); cli.IsTerminal(w) {
		attempts := 0
		for _, h := range d.Holders {
			attempts += h.Asks + h.Calls
		}
		left := "given back"
		if d.Ended.IsZero() {
			left = time.Until(d.Until).Round(time.Second).String() + " left"
		}
		fmt.Fprintf(w, "\r\033[K%s, %s refused", left, cli.Count(attempts, "attempt", "attempts"))
	}
}

func write(w io.Writer, d view.Drill, verdicts []Verdict) {
	fmt.Fprintln(w, cli.Wrap(w, headline(d, verdicts), "  "))
	if d.Unconfirmed != "" {
		fmt.Fprintln(w, cli.Wrap(w, "not every end was confirmed: "+d.Unconfirmed, "  "))
	}
	for _, v := range verdicts {
		mark := "ok  "
		if !v.OK {
			mark = "!   "
		}
		fmt.Fprintf(w, "\n%s%s\n", mark, v.who())
		fmt.Fprintln(w, cli.Wrap(w, "    "+v.Did+"; "+v.Back, "    "))
	}
}
