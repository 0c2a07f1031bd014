package persistence

// trackedColumn is one of the columns that Attach adds to a table.
type trackedColumn struct {
	name, declaration string
	affinities        []Affinity // what an application's own column of the name may have
}

var trackedColumns = []trackedColumn{
	{"createdOn", "INTEGER", []Affinity{AffinityInteger}},
	{"updatedOn", "INTEGER", []Affinity{AffinityInteger}},
	{"updatedBy", "TEXT", []Affinity{AffinityText}},
	{"serverId", "TEXT", []Affinity{AffinityText}},
	{"isDirty", "INTEGER NOT NULL DEFAULT 1", []Affinity{AffinityInteger, AffinityNumeric}}, // BOOLEAN is numeric
	{"clientId", "TEXT", []Affinity{AffinityText}},
	{"serverVersion", "INTEGER", []Affinity{AffinityInteger}},
}

func isTracked(name string) bool {
	for _, c := range trackedColumns {
		if fold(name) == fold(c.name) {
			return true
		}
	}
	return false
}
