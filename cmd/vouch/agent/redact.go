package agent

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

// What vouch redact does with what looks like a secret, as redact.shapes of a proxy block.
var shapeModes = []string{"redact", "mark", "block", "off"}

func newRedact(*cli.Options) *cobra.Command {
	var files []string
	var shapes string
	cmd := &cobra.Command{
		Use:   "redact",
		Short: "Take secrets out of what passes by",
		Long: `Redact copies its standard input to its standard output, without the secrets in it: it
is the filter that the proxy's responses go through. The values in --secret are found in
the forms in which programs repeat them (base64, hexadecimal, percent-encoded, in JSON).
What has the shape of a vendor's key, a JWT or a private key is replaced too; --shapes
says what else to do with it: mark lets it pass, block ends with 1 before it does, off
does not look. What was found is counted on standard error.

It tells what is well known by its beginning. A password looks like any other text, so
give it with --secret.`,
		Example: `  journalctl -u agent | vouch redact >agent.log
  ./build 2>&1 | vouch redact --secret /etc/vouchd/secrets/registry
  git diff --cached | vouch redact --shapes block >/dev/null`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(shapeModes, shapes) {
				return cli.Usagef("--shapes %q: want %s", shapes, strings.Join(shapeModes, ", "))
			}
			values, err := readSecrets(files)
			if err != nil {
				return err
			}
			return redactAll(cmd.OutOrStdout(), cmd.InOrStdin(), cmd.ErrOrStderr(), values, shapes)
		},
	}
	cmd.Flags().StringArrayVar(&files, "secret", nil, "take the content of this `file` out, whatever it looks like; may be repeated")
	cmd.Flags().StringVar(&shapes, "shapes", "redact", "what to do with what looks like a secret: `redact, mark, block or off`")
	return cmd
}

// readSecrets returns the content of files, without a line end after it.
func readSecrets(files []string) (values []secret.Bytes, err error) {
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, redact.MaxLen+2))
		f.Close()
		if err != nil {
			return nil, err
		}
		b = []byte(strings.TrimRight(string(b), "\r\n"))
		if len(b) < redact.MinLen || len(b) > redact.MaxLen {
			return nil, fmt.Errorf("%s has %d bytes, and a secret to take out has %d to %d", file, len(b), redact.MinLen, redact.MaxLen)
		}
		values = append(values, secret.Of(b))
	}
	return values, nil
}

func redactAll(to io.Writer, from io.Reader, said io.Writer, values []secret.Bytes, shapes string) error {
	secrets, err := redact.Compile(values...)
	if err != nil {
		return err
	}
	shaped := redact.Shapes(to, shapes != "mark")
	if shapes != "off" {
		to = shaped
	}
	w := secrets.Writer(to)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		_, wrong := w.Write(buf[:n])
		ended := errors.Is(err, io.EOF)
		if ended {
			err = errors.Join(w.Close(), shaped.Close())
		}
		if err := errors.Join(err, wrong); err != nil {
			return err
		}
		if ended || shapes == "block" && len(shaped.Counts()) > 0 {
			return tell(said, w.Count(), shaped.Counts(), shapes)
		}
	}
}

// tell says what was found; it is an error where that may not pass.
func tell(to io.Writer, secrets int, shapes map[string]int, mode string) error {
	var found []string
	if secrets > 0 {
		found = append(found, cli.Count(secrets, "value of --secret", "values of --secret"))
	}
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		found = append(found, fmt.Sprintf("%d × %s", shapes[name], name))
	}
	if len(found) == 0 {
		return nil
	}
	list := strings.Join(found, ", ")
	if mode == "block" && len(shapes) > 0 {
		return fmt.Errorf("standard input has secrets in it (%s)", list)
	}
	fmt.Fprintf(to, "vouch: found %s\n", list)
	return nil
}
