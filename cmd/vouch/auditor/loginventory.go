package auditor

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/inventory/scan"
)

// addInventory adds to a report what a run of vouch inventory has found.
func addInventory(cmd *cobra.Command, u *analyst.Usage, file string) error {
	data, err := cli.ReadDocument(cmd, file, scan.MaxResult)
	if err != nil {
		return err
	}
	result, err := scan.ParseResult(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var secrets []analyst.StaticSecret
	for i := range result.Findings {
		if f := &result.Findings[i]; f.Static() {
			secrets = append(secrets, analyst.StaticSecret{
				Kind: f.Kind, Path: f.Path, Line: f.Line, Item: f.Item, What: f.What, Readers: f.Readers, Places: f.Places,
				Written: f.Modified, Broad: f.Broad, Shared: f.Access == inventory.Everyone || f.Access == inventory.Group,
			})
		}
	}
	u.AddInventory(result.Time, secrets)
	return nil
}
