package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential/dotenv"
)

// handlePrefix begins a value that stands for a credential: its name follows,
// and after a colon the field, if it is not the only one.
const handlePrefix = "vouch:"

// readEnvironment reads a .env file: which credentials its handles want where,
// and what else it sets, as NAME=value. Without a file there is neither.
func readEnvironment(cmd *cobra.Command, path string) (vars []variable, plain []string, err error) {
	if path == "" {
		return nil, nil, nil
	}
	data, err := cli.ReadDocument(cmd, path, dotenv.MaxLen)
	if err != nil {
		return nil, nil, err
	}
	file, err := dotenv.Parse(data)
	if err != nil {
		return nil, nil, cli.InFile(path, err)
	}
	last := make(map[string]dotenv.Variable)
	for _, v := range file.Variables {
		last[v.Name] = v
	}
	var problems []error
	for _, v := range file.Variables {
		if v.Line != last[v.Name].Line {
			continue // the last of a name counts
		}
		text := string(v.Value.Reveal())
		handle, isHandle := strings.CutPrefix(text, handlePrefix)
		name, field, several := strings.Cut(handle, ":")
		switch {
		case v.Unclear != "":
			problems = append(problems, fmt.Errorf("line %d: value of %s: %s", v.Line, v.Name, v.Unclear))
		case !isHandle:
			plain = append(plain, v.Name+"="+text)
		case name == "" || several && field == "" || !variableName.MatchString(v.Name):
			problems = append(problems, fmt.Errorf("line %d: %s has an invalid handle; write it as vouch:NAME or vouch:NAME:FIELD", v.Line, v.Name))
		default:
			vars = append(vars, variable{name, field, v.Name})
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, nil, cli.InFile(path, err)
	}
	return vars, plain, nil
}
