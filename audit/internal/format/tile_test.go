package format

import (
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func TestTileNamesRoundTrip(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		tile tlog.Tile
		want string
	}{
		{FullTile(0, 0), "tile/0/000"},
		{FullTile(2, 1234067), "tile/2/x001/x234/067"},
		{FullTile(EntriesLevel, 1234), "tile/entries/x001/234"},
		{tlog.Tile{H: TileHeight, L: 1, N: 5, W: 17}, "tile/1/005.p/17"},
		{tlog.Tile{H: TileHeight, L: EntriesLevel, N: 5, W: 255}, "tile/entries/005.p/255"},
	} {
		if got := TilePath(tt.tile); got != tt.want {
			t.Errorf("%v is named %s, want %s", tt.tile, got, tt.want)
		}
		if got, err := ParseTilePath(tt.want); err != nil || got != tt.tile {
			t.Errorf("%s is %v (%v), want %v", tt.want, got, err, tt.tile)
		}
	}
	for _, name := range []string{"tile/0/0", "tile/data/000", "tile/8/0/000", "tile/0/000.p/256", "tile/0/000.p/0", "tile/entries/x000/001", "tile/-1/000"} {
		if got, err := ParseTilePath(name); err == nil {
			t.Errorf("%s is %v", name, got)
		}
	}
}
