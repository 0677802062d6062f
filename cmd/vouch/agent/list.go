package agent

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// A granted credential is one that this process may lease, as it is printed.
type granted struct {
	Name        string   `json:"name"`
	How         string   `json:"how"` // see howOf
	Hosts       []string `json:"hosts,omitempty"`
	Socket      string   `json:"socket,omitempty"`
	Description string   `json:"description,omitempty"`
}

// list prints what this process is granted.
func (l *leaser) list(cmd *cobra.Command, o *cli.Options) error {
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), l.timeout)
	defer cancel()
	all, err := client.List(ctx)
	if err != nil {
		return err
	}
	of := make([]granted, 0, len(all))
	for _, c := range all {
		g := granted{Name: c.Name, How: howOf(c), Description: c.Description}
		if p := c.Proxy; p != nil {
			g.Hosts, g.Socket = p.Hosts, p.Socket
		}
		of = append(of, g)
	}
	return o.Print(cmd, of, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		for _, g := range of {
			where := strings.Join(g.Hosts, ",")
			if g.Socket != "" {
				where = g.Socket
			}
			fmt.Fprintln(t, strings.TrimRight(strings.Join([]string{g.Name, g.How, where, g.Description}, "\t"), "\t"))
		}
	})
}

// howOf says how a credential comes: as a value, or by calls that vouchd makes with it.
func howOf(c *credentialv1.Credential) string {
	switch p := c.Proxy; {
	case p == nil:
		return "value"
	case p.Values:
		return "value or calls"
	case p.Passthrough:
		return "passes"
	case p.Socket != "":
		return "connections"
	}
	return "calls"
}
