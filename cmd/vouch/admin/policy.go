package admin

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
	"github.com/vouchd/vouchd/credential/policy"
)

// PolicyCommands returns the commands below vouch policy that are for those who write
// rules.
func PolicyCommands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{newPolicyTest(o), newPolicyPresets(o)}
}

// A verdictView is what a definition's rules say of one request.
type verdictView struct {
	Line     int    `json:"line"`
	Request  string `json:"request"`
	Effect   string `json:"effect"`
	Rule     string `json:"rule,omitempty"`
	Why      string `json:"why,omitempty"`
	Expected string `json:"expected,omitempty"` // what it should have been, and is not
}

func newPolicyTest(o *cli.Options) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "test CREDENTIAL REQUESTS",
		Short: "Show what a credential's rules say of requests",
		Long: `Test applies the rules of a credential's proxy block to requests, and prints what
would become of each. Nothing is contacted. REQUESTS is a file, or - for standard input,
with a request on each line: the method, the target and, if there is one, the content as
JSON. A line may begin with what is expected of it, allow or deny; if one is not met, the
exit code is 1. Empty lines and those that begin with # are left out.`,
		Example: `  vouch policy test openai requests.txt
  echo 'deny POST /v1/files {}' | vouch policy test openai -
  vouch policy test openai requests.txt --credentials-dir ./credentials.d`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				c, err := o.Load()
				if err != nil {
					return err
				}
				dir = c.CredentialsDir
			}
			defs, err := credential.LoadDefinitions(dir, brokers.All(brokers.Deps{}), true)
			if err != nil {
				return err
			}
			defer defs.Close()
			d, ok := defs.Get(args[0])
			switch {
			case !ok:
				return fmt.Errorf("%s has no credential %s", dir, args[0])
			case d.Proxy == nil:
				return fmt.Errorf("credential %s has no proxy block, and so no rules; see docs/proxy.md", args[0])
			}
			text, err := cli.ReadDocument(cmd, args[1], maxRequests)
			if err != nil {
				return err
			}
			verdicts, err := judgeAll(d.Proxy, string(text))
			if err != nil {
				return cli.InFile(args[1], err)
			}
			if err := o.Print(cmd, verdicts, func(w io.Writer) { writeVerdicts(w, verdicts) }); err != nil {
				return err
			}
			for _, v := range verdicts {
				if v.Expected != "" {
					return cli.ExitError(1)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "credentials-dir", "", "read the definition from this `directory`, not the installed one")
	return cmd
}

const maxRequests = 4 << 20 // bytes

// judgeAll applies rules to each line.
func judgeAll(p *policy.Policy, text string) (list []verdictView, err error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, maxRequests)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := judge(p, line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		v.Line = n
		list = append(list, v)
	}
	return list, lines.Err()
}

func judge(p *policy.Policy, line string) (v verdictView, err error) {
	expected := ""
	if first, rest, _ := strings.Cut(line, " "); first == string(policy.Allow) || first == string(policy.Deny) {
		expected, line = first, strings.TrimSpace(rest)
	}
	parts := strings.SplitN(line, " ", 3)
	if len(parts) < 2 {
		return v, fmt.Errorf("%.60q is no request; write it like: POST /v1/responses {\"model\": \"gpt-5-mini\"}", line)
	}
	v = verdictView{Request: parts[0] + " " + parts[1]}
	target, err := policy.ParseTarget(parts[1], p.Slashes)
	if err != nil {
		v.Effect, v.Why = string(policy.Deny), err.Error()
	} else {
		q := &policy.Request{Method: parts[0], Target: target}
		if len(parts) == 3 {
			q.Type, q.Size = "application/json", int64(len(parts[2]))
			if q.JSON, err = policy.ReadJSON([]byte(parts[2]), p.Pointers(q.Method, target)); err != nil {
				v.Why = err.Error()
			}
		}
		verdict := p.Judge(q)
		v.Effect, v.Rule = string(verdict.Effect), verdict.Rule
		if verdict.Rule == "" && v.Why == "" {
			v.Why = "no rule matches"
		}
	}
	if expected != "" && expected != v.Effect {
		v.Expected = expected
	}
	return v, nil
}

func writeVerdicts(w io.Writer, list []verdictView) {
	for _, v := range list {
		fmt.Fprintf(w, "%-5s  %s", v.Effect, v.Request)
		if v.Rule != "" {
			fmt.Fprintf(w, "  by rule %s", v.Rule)
		}
		if v.Why != "" {
			fmt.Fprintf(w, "  (%s)", v.Why)
		}
		if v.Expected != "" {
			fmt.Fprintf(w, "  EXPECTED %s, line %d", v.Expected, v.Line)
		}
		fmt.Fprintln(w)
	}
}

// A presetView is a preset as it is listed.
type presetView struct {
	Name     string        `json:"name"`
	Source   string        `json:"source"`
	Variants []variantView `json:"variants"`
}

type variantView struct {
	Name string `json:"name"`
	Says string `json:"says"`
}

func newPolicyPresets(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "presets",
		Short: "List the presets for vendors' APIs",
		Long: `Presets lists what a proxy block can name under preset: and variant:, with the document
that each was made from. The first variant counts where none is named.`,
		Example: `  vouch policy presets`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []presetView
			for _, p := range policy.Presets() {
				view := presetView{Name: p.Name, Source: p.Source}
				for _, v := range p.Variants {
					view.Variants = append(view.Variants, variantView(v))
				}
				list = append(list, view)
			}
			return o.Print(cmd, list, func(w io.Writer) {
				for _, p := range list {
					fmt.Fprintf(w, "%s  (%s)\n", p.Name, p.Source)
					for _, v := range p.Variants {
						fmt.Fprintf(w, "  %-12s %s\n", v.Name, v.Says)
					}
				}
			})
		},
	}
}
