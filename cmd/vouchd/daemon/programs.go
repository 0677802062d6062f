package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/reload"
	"github.com/vouchd/vouchd/programs"
)

// definedPrograms are what vouch run may start, by name.
type definedPrograms = map[string]*programs.Program

// Programs returns the source of the programs in dir. Two processes load it: the
// service of vouch run, which starts them, and the daemon, which records what
// changes.
func Programs(dir string, logger *slog.Logger) reload.Source[map[string]*programs.Program] {
	return reload.Source[definedPrograms]{
		Name: "programs", Place: dir,
		Parse:  programs.Parse,
		Digest: programsDigest,
		Logger: logger,
	}
}

// programsDigest is of every field of every program, by name. All are plain
// values.
func programsDigest(defined definedPrograms) [32]byte {
	if len(defined) == 0 {
		return [32]byte{}
	}
	b, err := json.Marshal(defined)
	if err != nil {
		panic(fmt.Sprintf("encoding programs: %v", err)) // they hold nothing that cannot be encoded
	}
	return sha256.Sum256(b)
}

// watchedPrograms are the programs as the daemon sees them: it records what
// changes, and says in its status what is invalid.
func watchedPrograms(dir string, log *records, logger *slog.Logger) *reload.Value[definedPrograms] {
	source := Programs(dir, logger)
	source.Record = func(ctx context.Context, next definedPrograms, problem error) error {
		return log.reloaded(ctx, audit.Record{Reason: count(len(next), "program", "programs")}, problem)
	}
	return reload.Holding(source, nil)
}
