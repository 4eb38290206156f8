package snapshot

import (
	"fmt"
	"strings"

	"berth/base/errs"
)

// Labels of an Active snapshot or a View that shift the owners of its tree, as
// a container with a user namespace needs. Make them with IDMapLabels. They
// are read at Mount; what is on disk keeps the owners of the image.
const (
	UIDMap = "berth.uidmap"
	GIDMap = "berth.gidmap"
)

// IDMap shows Size ids, from Container on, as those from Host on.
type IDMap struct {
	Container, Host, Size uint32
}

// IDMapLabels puts the maps into labels for Prepare or View.
func IDMapLabels(uids, gids []IDMap) map[string]string {
	return map[string]string{UIDMap: formatIDMaps(uids), GIDMap: formatIDMaps(gids)}
}

func formatIDMaps(maps []IDMap) string {
	parts := make([]string, len(maps))
	for i, m := range maps {
		parts[i] = fmt.Sprintf("%d:%d:%d", m.Container, m.Host, m.Size)
	}
	return strings.Join(parts, ",")
}

// IDMaps reads the maps out of labels; both are nil where there are none.
// Labels that are no maps are Invalid.
func IDMaps(labels map[string]string) (uids, gids []IDMap, err error) {
	if uids, err = parseIDMaps(labels[UIDMap]); err != nil {
		return nil, nil, err
	}
	if gids, err = parseIDMaps(labels[GIDMap]); err != nil {
		return nil, nil, err
	}
	if (uids == nil) != (gids == nil) {
		return nil, nil, errs.New(errs.Invalid, "id maps: users and groups need one each")
	}
	return uids, gids, nil
}

func parseIDMaps(label string) ([]IDMap, error) {
	if label == "" {
		return nil, nil
	}
	var maps []IDMap
	for part := range strings.SplitSeq(label, ",") {
		var m IDMap
		var rest string
		n, _ := fmt.Sscanf(part+" .", "%d:%d:%d %s", &m.Container, &m.Host, &m.Size, &rest)
		if n != 4 || rest != "." || m.Size == 0 {
			return nil, errs.New(errs.Invalid, "id map %q: want container:host:size", part)
		}
		maps = append(maps, m)
	}
	return maps, nil
}
