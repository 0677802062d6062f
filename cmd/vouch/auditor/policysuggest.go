package auditor

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// PolicyCommands returns the commands below vouch policy that read the log.
func PolicyCommands(o *cli.Options) []*cobra.Command { return []*cobra.Command{newPolicySuggest(o)} }

// A suggestion is a rule that would have allowed what was refused.
type suggestion struct {
	Credential string    `json:"credential"`
	Methods    []string  `json:"methods"`
	Path       string    `json:"path"`
	Count      int       `json:"count"` // of requests
	Identities []string  `json:"identities"`
	Last       time.Time `json:"last"`
	First      uint64    `json:"first_record"`
}

func newPolicySuggest(o *cli.Options) *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "suggest [LOG]",
		Short: "Propose rules from requests that were refused",
		Long: `Suggest reads from the log which requests no rule allowed, or would not have with
enforce: false, and prints the rules that would allow them, the most frequent first.
Segments of a path that look like identifiers become *. Read each before you add it: that
an agent asked for something does not say that it should have it. LOG is a directory or an
archive.`,
		Example: `  vouch policy suggest --since 24h
  vouch policy suggest --credential github --since 1h`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.resolve(time.Now(), o.Output); err != nil {
				return err
			}
			fsys, _, done, err := OpenLog(o, args)
			if err != nil {
				return err
			}
			defer done()
			from, err := q.first(fsys)
			if err != nil {
				return err
			}
			var s suggestions
			for e, err := range reader.Records(cmd.Context(), fsys, from) {
				if err != nil {
					return stopped(cmd.Context(), err)
				}
				if q.Wants(&e.Leaf) {
					s.take(&e.Leaf)
				}
			}
			list := s.list()
			return o.Print(cmd, list, func(w io.Writer) { writeSuggestions(w, list) })
		},
	}
	q.flags(cmd)
	return cmd
}

// maxSuggestions bounds what is remembered of a log.
const maxSuggestions = 10_000

// suggestions are by credential and path.
type suggestions struct{ by map[[2]string]*suggestion }

// take looks at a record: of a call that no rule matched.
func (s *suggestions) take(l *audit.Leaf) {
	c := l.Call
	if l.Event != audit.EventCall || c == nil || c.Rule != "" || l.Credential == nil || l.Outcome != audit.Denied && !c.Unenforced || c.Method == "" {
		return
	}
	key := [2]string{l.Credential.Name, template(c.Path)}
	of := s.by[key]
	if of == nil {
		if len(s.by) >= maxSuggestions {
			return
		}
		if s.by == nil {
			s.by = make(map[[2]string]*suggestion)
		}
		of = &suggestion{Credential: key[0], Path: key[1], First: l.Index}
		s.by[key] = of
	}
	of.Count++
	of.Last = l.Time
	if !slices.Contains(of.Methods, c.Method) {
		of.Methods = append(of.Methods, c.Method)
	}
	if l.SPIFFEID != "" && !slices.Contains(of.Identities, l.SPIFFEID) {
		of.Identities = append(of.Identities, l.SPIFFEID)
	}
}

func (s *suggestions) list() []suggestion {
	list := make([]suggestion, 0, len(s.by))
	for _, of := range s.by {
		slices.Sort(of.Methods)
		slices.Sort(of.Identities)
		list = append(list, *of)
	}
	slices.SortFunc(list, func(a, b suggestion) int {
		return cmp.Or(strings.Compare(a.Credential, b.Credential), b.Count-a.Count, strings.Compare(a.Path, b.Path))
	})
	return list
}

// template leaves a path's words, and puts * for what names one thing.
func template(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		digits := strings.ContainsFunc(part, unicode.IsDigit)
		version := len(part) <= 4 && len(part) > 1 && (part[0] == 'v' || part[0] == 'V') && digits
		if digits && !version || len(part) > 32 || strings.ContainsAny(part, "%@") {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}

func writeSuggestions(w io.Writer, list []suggestion) {
	if len(list) == 0 {
		fmt.Fprintln(w, "No request was refused because no rule allowed it.")
		return
	}
	of := ""
	for i, s := range list {
		if s.Credential != of {
			of = s.Credential
			fmt.Fprintf(w, "# credential %s\nrules:\n", of)
		}
		fmt.Fprintf(w, "  # %s, last %s, by %s; see: vouch log explain %d\n", cli.Count(s.Count, "request", "requests"), cli.Time(s.Last),
			cmp.Or(strings.Join(s.Identities, ", "), "nobody known"), s.First)
		fmt.Fprintf(w, "  - {name: suggested-%d, effect: allow, methods: [%s], paths: [%q]}\n", i+1, strings.Join(s.Methods, ", "), s.Path)
	}
}
