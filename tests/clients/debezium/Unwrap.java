import io.debezium.transforms.ExtractNewRecordState;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.json.JsonConverter;
import org.apache.kafka.connect.sink.SinkRecord;

/** Reads records of debezium-envelope as a Connect sink does, with Debezium's own ExtractNewRecordState, and prints rows. */
public final class Unwrap {
    public static void main(String[] args) throws Exception {
        JsonConverter keys = new JsonConverter();
        keys.configure(Map.of("schemas.enable", "true"), true);
        JsonConverter values = new JsonConverter();
        values.configure(Map.of("schemas.enable", "true"), false);
        ExtractNewRecordState<SinkRecord> unwrap = new ExtractNewRecordState<>();
        unwrap.configure(Map.of("delete.tombstone.handling.mode", "rewrite", "add.fields", "op,source.table"));
        var json = new com.fasterxml.jackson.databind.ObjectMapper();
        for (String line : Files.readAllLines(Path.of(args[0]))) {
            var record = json.readTree(line);
            String topic = record.get("topic").asText();
            byte[] key = json.writeValueAsBytes(record.get("key"));
            byte[] value = record.has("value") ? json.writeValueAsBytes(record.get("value")) : null;
            SchemaAndValue k = keys.toConnectData(topic, key);
            SchemaAndValue v = value == null ? SchemaAndValue.NULL : values.toConnectData(topic, value);
            SinkRecord in = new SinkRecord(topic, 0, k.schema(), k.value(), v.schema(), v.value(), 0);
            SinkRecord out = unwrap.apply(in);
            System.out.println(k.value() + " -> " + (out == null ? "dropped" : String.valueOf(out.value())));
        }
    }
}
