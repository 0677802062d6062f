package admin

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/programs"
)

// A checkView is what a check found valid.
type checkView struct {
	Dir         string `json:"dir"`
	TrustDomain string `json:"trust_domain,omitempty"`
	Entries     int    `json:"entries"`
	Credentials *int   `json:"credentials,omitempty"` // nil where entries alone were checked
	Programs    *int   `json:"programs,omitempty"`    // likewise
	Federation  *int   `json:"federation,omitempty"`  // likewise: foreign trust domains

	Warnings   []string `json:"warnings,omitempty"`   // deprecated keys
	Named      []string `json:"named,omitempty"`      // entries whose certificates have more names than the SPIFFE ID
	Unanchored []string `json:"unanchored,omitempty"` // entries that any user of the machine can match
	Containers []string `json:"containers,omitempty"` // entries that mean processes of containers
}

// said fills in what there is to say about valid entries.
func (v checkView) said(es *identity.Entries) checkView {
	for _, e := range es.All() {
		named := fmt.Sprintf("%s: %s", e.Pos, e.ID)
		if n := e.Names; len(n.DNS) > 0 {
			v.Named = append(v.Named, fmt.Sprintf("%s passes for %s", named, strings.Join(n.DNS, ", ")))
		} else if n.Common != "" {
			v.Named = append(v.Named, fmt.Sprintf("%s has the common name %s", named, n.Common))
		}
		if e.Unanchored {
			v.Unanchored = append(v.Unanchored, named)
		}
		if e.Container() {
			v.Containers = append(v.Containers, named)
		}
	}
	return v
}

func newCheck(o *cli.Options) *cobra.Command {
	var td string
	cmd := &cobra.Command{
		Use:   "check [DIR]",
		Short: "Check configuration before the daemon loads it",
		Long: `Check reads a configuration as the daemon would and reports every problem with its
file and line: in entries, credentials, programs and federation, entries that grant an
undefined credential, and entries that federate with an unknown trust domain. DIR is a copy of /etc/vouchd or a directory of entries only;
without it, the installed configuration is checked. Nothing is contacted.`,
		Example: `  vouch check
  vouch check ./etc/vouchd
  vouch check --trust-domain example.org ./entries.d`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			view, err := checkConfiguration(o, args, td)
			if err := errors.Join(err, checkNodePolicy(o, args)); err != nil {
				return err
			}
			return o.Print(cmd, view, func(w io.Writer) {
				fmt.Fprintf(w, "%s is valid: %s", view.Dir, cli.Count(view.Entries, "entry", "entries"))
				if view.Credentials != nil {
					fmt.Fprintf(w, ", %s", cli.Count(*view.Credentials, "credential", "credentials"))
				}
				if view.Programs != nil && *view.Programs > 0 {
					fmt.Fprintf(w, ", %s", cli.Count(*view.Programs, "program", "programs"))
				}
				if view.Federation != nil && *view.Federation > 0 {
					fmt.Fprintf(w, ", %s", cli.Count(*view.Federation, "foreign trust domain", "foreign trust domains"))
				}
				fmt.Fprintln(w)
				for _, warning := range view.Warnings {
					fmt.Fprintln(w, warning)
				}
				for _, e := range view.Named {
					fmt.Fprintln(w, e)
				}
				for _, e := range view.Unanchored {
					fmt.Fprintf(w, "%s is unanchored: any user of this machine can have it\n", e)
				}
				for _, e := range view.Containers {
					fmt.Fprintf(w, "%s matches only processes in containers\n", e)
				}
			})
		},
	}
	cmd.Flags().StringVar(&td, "trust-domain", "", "expected `trust domain` of the entries, if DIR has no vouchd.yaml")
	return cmd
}

func checkConfiguration(o *cli.Options, args []string, td string) (checkView, error) {
	if len(args) == 0 {
		c, err := o.Load()
		if err != nil {
			return checkView{}, err
		}
		view, err := checkAll(directories{c.EntriesDir, c.CredentialsDir, c.ProgramsDir, c.FederationDir, c.GrantsDir}, c.TrustDomain, identity.Limits{MaxX509TTL: c.Authority.MaxX509TTL(), JWTAlgorithms: c.Authority.JWTAlgorithms})
		view.Warnings = c.Warnings
		return view, errors.Join(err, checkBundles(c))
	}
	dir := args[0]
	if info, err := os.Stat(dir); err != nil {
		return checkView{}, err
	} else if !info.IsDir() {
		return checkView{}, cli.Usagef("%s is not a directory", dir)
	}
	file := filepath.Join(dir, "vouchd.yaml")
	data, err := config.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return checkEntriesAlone(o, dir, td)
	}
	if err != nil {
		return checkView{}, err
	}
	c, err := config.Parse(file, data)
	if err != nil {
		return checkView{}, err
	}
	limits := identity.Limits{MaxX509TTL: c.Authority.MaxX509TTL(), JWTAlgorithms: c.Authority.JWTAlgorithms, AnyOwner: true}
	view, err := checkAll(directories{filepath.Join(dir, "entries.d"), filepath.Join(dir, "credentials.d"), filepath.Join(dir, "programs.d"), filepath.Join(dir, "federation.d"), filepath.Join(dir, "grants.d")}, c.TrustDomain, limits)
	view.Warnings = c.Warnings
	return view, err
}

// checkEntriesAlone checks entries without the configuration they are for: of
// the trust domain named, or else all of one, and with the default limits.
func checkEntriesAlone(o *cli.Options, dir, td string) (checkView, error) {
	domain := spiffeid.RequireTrustDomainFromString("any")
	if td != "" {
		var err error
		if domain, err = spiffeid.TrustDomainFromString(td); err != nil {
			return checkView{}, cli.Usagef("--trust-domain %q: %w", td, err)
		}
	}
	c, err := config.Parse("defaults", []byte("trust_domain: "+domain.Name()))
	if err != nil {
		return checkView{}, err
	}
	limits := identity.Limits{MaxX509TTL: c.Authority.MaxX509TTL(), AnyOwner: true}
	if td == "" {
		limits.AnyTrustDomain, domain = true, spiffeid.TrustDomain{}
	}
	return checkEntries(dir, domain, limits)
}

// directories are those of a configuration.
type directories struct{ entries, credentials, programs, federation, grants string }

// checkAll checks entries, what they name, and programs.
func checkAll(in directories, td spiffeid.TrustDomain, limits identity.Limits) (checkView, error) {
	es, entriesErr := identity.LoadEntries(in.entries, td, limits)
	domains, domainsErr := foreign.Load(in.federation, td, limits.AnyOwner)
	defs, err := credential.LoadDefinitions(in.credentials, brokers.All(brokers.Deps{JWTAlgorithms: limits.JWTAlgorithms}), limits.AnyOwner)
	ps, programsErr := programs.Load(in.programs, limits.AnyOwner)
	grants, grantsErr := identity.LoadGrants(in.grants, td, limits.AnyOwner)
	if err := errors.Join(entriesErr, err, programsErr, domainsErr, grantsErr); err != nil {
		return checkView{}, err
	}
	var problems config.Errors
	for _, e := range es.All() {
		for _, name := range e.Credentials {
			if _, ok := defs.Get(name); !ok {
				problems.Add(e.Pos, "entry %s grants credential %s, which is not defined in %s; define it there or remove it here", e.ID, name, in.credentials)
			}
		}
		for _, other := range e.FederatesWith {
			if !domains.Has(other) {
				problems.Add(e.Pos, "entry %s federates with %s, which is not configured in %s; add it there or remove it here", e.ID, other, in.federation)
			}
		}
	}
	for id, pos := range grants.All() {
		for _, name := range grants.To(id) {
			if _, ok := defs.Get(name); !ok {
				problems.Add(pos, "%s is granted credential %s, which is not defined in %s; define it there or remove it here", id, name, in.credentials)
			}
		}
	}
	if err := problems.Err(); err != nil {
		return checkView{}, err
	}
	return checkView{Dir: in.entries, TrustDomain: td.Name(), Entries: es.Len(), Credentials: new(len(defs.All())), Programs: new(len(ps)), Federation: new(len(domains.All()))}.said(es), nil
}

// checkBundles reads the bundle files of a configuration that is valid otherwise. Those of a
// copy stand somewhere else.
func checkBundles(c *config.Config) error {
	domains, err := foreign.Load(c.FederationDir, c.TrustDomain, false)
	if err != nil {
		return nil // already reported
	}
	var problems config.Errors
	for _, d := range domains.All() {
		if d.File == "" {
			continue
		}
		if _, err := foreign.ReadBundle(d); err != nil {
			problems.Add(d.Pos, "bundle_file of %s: %v", d.TrustDomain, err)
		}
	}
	return problems.Err()
}

func checkEntries(dir string, td spiffeid.TrustDomain, limits identity.Limits) (checkView, error) {
	es, err := identity.LoadEntries(dir, td, limits)
	if err != nil {
		return checkView{}, err
	}
	return checkView{Dir: dir, TrustDomain: td.Name(), Entries: es.Len()}.said(es), nil
}

// checkNodePolicy checks the policy that belongs to a configuration, if there
// is one.
func checkNodePolicy(o *cli.Options, args []string) error {
	if len(args) > 0 {
		file := filepath.Join(args[0], "node-policy.yaml")
		data, err := os.ReadFile(file)
		return parsedPolicy(file, data, err)
	}
	c, err := o.Load()
	if err != nil {
		return nil // already reported
	}
	data, err := config.ReadFile(c.Node.Policy)
	return parsedPolicy(c.Node.Policy, data, err)
}

func parsedPolicy(file string, data []byte, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err == nil {
		_, err = appraisal.ParsePolicy(file, data)
	}
	return err
}
