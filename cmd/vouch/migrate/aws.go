package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/text"
	"github.com/vouchd/vouchd/secret"
)

// An awsFile is which profile of a file to migrate; empty is all of them.
type awsFile struct {
	options
	profile string
}

func newAWS(o *cli.Options) *cobra.Command {
	m := awsFile{options: options{Options: o}}
	cmd := &cobra.Command{
		Use:   "aws [FILE]",
		Short: "Have AWS SDKs ask vouch for a profile's keys",
		Long: `Aws seals the secret access keys in a file of profiles (~/.aws/credentials if none is
named), and puts credential_process in their place, so that SDKs and the AWS CLI ask
vouch. The access key's ID, which is no secret, stays in that line. Keys of a session
expire by themselves and are left.

A role that vouchd assumes needs no key at all: the file of definitions has one to fill
in, which the same profile then uses.`,
		Example: `  vouch migrate aws --dry-run
  vouch migrate aws --profile agent /home/ann/.aws/credentials`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				home, err := os.UserHomeDir()
				if err != nil {
					return err
				}
				args = []string{filepath.Join(home, ".aws", "credentials")}
			}
			return m.run(cmd, args[0], target{"migrate aws", inventory.AWS, m.plan})
		},
	}
	m.flags(cmd)
	cmd.Flags().StringVar(&m.profile, "profile", "", "migrate the profile of this `name` alone")
	return cmd
}

var accessKeyID = regexp.MustCompile(`^[A-Za-z0-9_]{4,128}$`)

func (m *awsFile) plan(p *plan) error {
	vouch, err := program()
	if err != nil {
		return err
	}
	profiles := make(map[string]map[string]text.Entry)
	var names []string
	for _, e := range text.INI(p.file.Data) {
		name := strings.TrimSpace(strings.TrimPrefix(e.Section, "profile "))
		if profiles[name] == nil {
			profiles[name] = make(map[string]text.Entry)
			names = append(names, name)
		}
		key := strings.ToLower(e.Key)
		if _, twice := profiles[name][key]; twice && strings.HasPrefix(key, "aws_") {
			p.fail(p.line(e.Start), "%s of profile %s is given twice; remove one", key, inventory.Printable(name))
		}
		profiles[name][key] = e
	}
	if m.profile != "" && profiles[m.profile] == nil {
		return fmt.Errorf("there is no profile %s in it", inventory.Printable(m.profile))
	}
	for _, name := range names {
		if m.profile == "" || m.profile == name {
			m.planProfile(p, name, profiles[name], vouch)
		}
	}
	if m.profile != "" { // the others are for another run
		keepOthers(p, "profile "+m.profile+" ")
	}
	return errors.Join(p.errs...)
}

func (m *awsFile) planProfile(p *plan, name string, has map[string]text.Entry, vouch string) {
	key, id := has["aws_secret_access_key"], has["aws_access_key_id"]
	if len(key.Value) == 0 {
		return
	}
	line, item := p.line(key.Start), "profile "+inventory.Printable(name)
	if p.keeps(name, line) {
		return
	}
	if _, session := has["aws_session_token"]; session {
		p.leave(item, line, "it is of a session and expires by itself; remove it, or have it made anew by vouch aws-credential-process")
		return
	}
	if process, ok := has["credential_process"]; ok {
		p.fail(p.line(process.Start), "%s has a credential_process too; remove that or the keys", item)
		return
	}
	if !accessKeyID.Match(id.Value) {
		p.fail(line, "%s has a secret access key without the aws_access_key_id that belongs to it", item)
		return
	}
	credential := p.seal(definition{item: item, given: "to SDKs, by credential_process", better: awsRole()}, name, line, secret.Of(bytes.Clone(key.Value)), "a secret access key")
	from := lineStart(p.file.Data, key.Start)
	p.hide(key.Start, key.End)
	p.edit(from, key.End, fmt.Sprintf("credential_process = %s aws-credential-process %s --access-key-id %s", vouch, credential, id.Value))
	p.removeLine(id.Start)
}

// keepOthers leaves what else an inventory finds, but for items that begin with a text.
func keepOthers(p *plan, prefix string) {
	found, _ := inventory.ReadFile(inventory.AWS, p.file.Path, p.file.Data)
	for _, f := range found {
		if !strings.HasPrefix(f.Item, prefix) {
			p.keep = append(p.keep, f.Item)
		}
	}
}

func lineStart(data []byte, at int) int { return bytes.LastIndexByte(data[:at], '\n') + 1 }

// removeLine plans to take out the line that a byte is in.
func (p *plan) removeLine(at int) {
	from, to := lineStart(p.file.Data, at), lineEnd(p.file.Data, at)
	if to < len(p.file.Data) {
		to++
	}
	p.edit(from, to, "")
}
