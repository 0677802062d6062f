import java.io.*;
import java.net.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.sql.*;
import java.util.Properties;
import javax.net.SocketFactory;

/** Queries over a Unix socket, for which the driver has no socket of its own. */
public class Query {
	public static class Unix extends SocketFactory {
		private final String path;
		public Unix(String path) { this.path = path; }
		@Override public Socket createSocket() { return new UnixSocket(path); }
		@Override public Socket createSocket(String h, int p) { return createSocket(); }
		@Override public Socket createSocket(String h, int p, InetAddress l, int q) { return createSocket(); }
		@Override public Socket createSocket(InetAddress h, int p) { return createSocket(); }
		@Override public Socket createSocket(InetAddress h, int p, InetAddress l, int q) { return createSocket(); }
	}

	static class UnixSocket extends Socket {
		private final String path;
		private SocketChannel channel;
		UnixSocket(String path) { this.path = path; }
		@Override public void connect(SocketAddress to, int timeout) throws IOException { channel = SocketChannel.open(UnixDomainSocketAddress.of(path)); }
		@Override public InputStream getInputStream() { return Channels.newInputStream(channel); }
		@Override public OutputStream getOutputStream() {
			return new OutputStream() {
				@Override public void write(int b) throws IOException { write(new byte[] {(byte) b}, 0, 1); }
				@Override public void write(byte[] b, int at, int n) throws IOException {
					for (ByteBuffer buffer = ByteBuffer.wrap(b, at, n); buffer.hasRemaining();) channel.write(buffer);
				}
			};
		}
		@Override public boolean isConnected() { return channel != null; }
		@Override public boolean isClosed() { return channel != null && !channel.isOpen(); }
		@Override public void close() throws IOException { if (channel != null) channel.close(); }
		@Override public void setTcpNoDelay(boolean on) {}
		@Override public void setSoTimeout(int n) {}
		@Override public int getSoTimeout() { return 0; }
		@Override public void setKeepAlive(boolean on) {}
		@Override public int getSendBufferSize() { return 65536; }
	}

	public static void main(String[] args) throws Exception {
		Properties p = new Properties();
		p.setProperty("socketFactory", "Query$Unix");
		p.setProperty("socketFactoryArg", args[0]);
		p.setProperty("user", "anybody");
		p.setProperty("sslmode", "disable");
		try (Connection c = DriverManager.getConnection("jdbc:postgresql://localhost/postgres", p)) {
			c.setAutoCommit(false);
			try (PreparedStatement s = c.prepareStatement("SELECT height + ? FROM tides")) {
				for (int i = 0; i < 10; i++) { // from the fifth on it is prepared on the server
					s.setInt(1, i);
					ResultSet r = s.executeQuery();
					r.next();
					if (r.getInt(1) != 7 + i) throw new Exception("it is " + r.getInt(1));
				}
			}
			try (Statement s = c.createStatement()) {
				s.setFetchSize(100); // a portal
				int n = 0;
				for (ResultSet r = s.executeQuery("SELECT generate_series(1, 1000)"); r.next();) n++;
				System.out.println("JDBC reads " + n + " rows");
			}
			c.commit();
		}
	}
}
